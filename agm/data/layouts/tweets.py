"""Tweets with a picture: Twitter-15 (sentiment about a name) and MSD (sarcasm)."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from agm.data._files import read_text
from agm.data.layouts.choices import Choice
from agm.data.layouts.image_text import ImageText, image_text_options
from agm.data.layouts.layout import Part
from agm.data.layouts.lists import read_rows

__all__ = ["Sarcasm", "Twitter15"]

_OWN = {"clean": "the set's own train, validation and test", "authors": "the same"}
_SPLITS = {"train": ("train",), "validation": ("dev", "valid2", "valid", "val"), "test": ("test2", "test")}


def _lists(ending: str, folders: tuple[str, ...]) -> dict[str, Part]:
    return {
        split: Part(f"the list of {split}", tuple(f"{folder}{name}{ending}" for folder in folders for name in names))
        for split, names in _SPLITS.items()
    }


class Twitter15(ImageText):
    """{train,dev,test}.tsv (index, label, image, text with $T$ for the name, the name) and twitter2015_images.

    The text is read with the name in its place. One picture may stand in several rows.
    """

    name = "twitter-15"
    title = "Twitter-15"
    source = "TomBERT's absa_data (github.com/jefferyYu/TomBERT); research only"
    schemes: ClassVar[Mapping[str, str]] = _OWN
    options: ClassVar[Mapping[str, Choice]] = image_text_options(40)
    parts: ClassVar[Mapping[str, Part]] = {
        **_lists(".tsv", ("", "annotations/", "twitter2015/", "absa_data/twitter2015/")),
        "images": Part("images", ("twitter2015_images", "IJCAI2019_data/twitter2015_images", "images"), sign=False),
    }

    def _scan(self) -> None:
        self.class_names = ("negative", "neutral", "positive")
        for split in _SPLITS:
            path = self.place(split)
            for number, cells in read_rows(path, "\t", columns=5):
                if cells[1].endswith("Label"):
                    continue
                _, label, image, text, name = cells[:5]
                index = self.label_of(label, ("0", "1", "2"), f"line {number}", path)
                if index is not None:
                    self.add(image, split, index, self.place("images") / image, text.replace("$T$", name), path, image)


class Sarcasm(ImageText):
    """{train,valid2,test2}.txt, lines [ID, TEXT, LABEL], the label last in longer ones; dataset_image/ID.jpg."""

    name = "sarcasm"
    title = "MSD (sarcasm on Twitter)"
    source = "github.com/headacheboy/data-of-multimodal-sarcasm-detection; research only"
    schemes: ClassVar[Mapping[str, str]] = _OWN
    options: ClassVar[Mapping[str, Choice]] = image_text_options(40)
    parts: ClassVar[Mapping[str, Part]] = {
        **_lists(".txt", ("", "text/", "data/", "text_data/")),
        "images": Part("images", ("dataset_image", "images", "image")),
    }

    def _scan(self) -> None:
        self.class_names = ("not sarcastic", "sarcastic")
        for split in _SPLITS:
            path = self.place(split)
            for name, text, label in self._rows(path):
                index = self.label_of(label, ("0", "1"), name, path)
                if index is not None:
                    self.add(f"{name}.jpg", split, index, self.place("images") / f"{name}.jpg", text, path)

    def _rows(self, path: Path) -> Iterator[tuple[str, str, str]]:
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:  # a literal: names and calls in it are refused
                row = ast.literal_eval(line.strip()) if len(line) < 2**16 else None
            except (SyntaxError, ValueError, MemoryError, RecursionError):
                row = None
            if isinstance(row, list) and len(row) >= 3:
                yield str(row[0]), str(row[1]), str(row[-1])
            else:
                reason = "no list of an ID, a text and a label"
                self.skip(
                    f"line {number}",
                    reason,
                    path,
                    bad="Repair it, or leave such lines out with agm data convert --skip-bad.",
                )
