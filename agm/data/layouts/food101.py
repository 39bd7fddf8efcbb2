"""UPMC Food-101: photographs of dishes with the titles of the pages that show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from agm.data.layouts.choices import Choice
from agm.data.layouts.image_text import ImageText, image_text_options
from agm.data.layouts.layout import Part
from agm.data.layouts.lists import read_json, read_rows
from agm.data.layouts.pictures import UNIT, Scale
from agm.data.layouts.text import clean_title

__all__ = ["Food101", "Food101Json"]


class Food101(ImageText):
    """texts/{train,test}_titles.csv (IMAGE,TEXT,LABEL, with or without a header), images/{train,test}/LABEL/IMAGE.

    Classes are sorted by name. In training images are turned by up to 30 degrees and mirrored, as BalanceBenchmark
    does it.
    """

    name = "food-101"
    title = "UPMC Food-101"
    source = "visiir.isir.upmc.fr and copies of it; research only (web pages)"
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the lists, a tenth of train held out for validation",
        "authors": "the lists, chosen on test as published",
    }
    options: ClassVar[Mapping[str, Choice]] = image_text_options(40)
    parts: ClassVar[Mapping[str, Part]] = {
        "train": Part("titles of train", ("texts/train_titles.csv", "train_titles.csv")),
        "test": Part("titles of test", ("texts/test_titles.csv", "test_titles.csv")),
        "train_images": Part("images of train", ("images/train", "train"), sign=False),
        "test_images": Part("images of test", ("images/test", "test"), sign=False),
    }
    turn = 30.0

    def _scan(self) -> None:
        rows: dict[str, list[list[str]]] = {}
        for split in ("train", "test"):
            cells = [cells for _, cells in read_rows(self.place(split), columns=3)]
            rows[split] = cells[1:] if cells and cells[0][2].lower() == "label" else cells
        names = sorted({cells[2] for cells in rows["train"]})
        self.class_names = tuple(names)
        for split, lines in rows.items():
            path, folder = self.place(split), self.place(f"{split}_images")
            for image, text, label, *_rest in lines:
                index = self.label_of(label, names, image, path)
                if index is not None:
                    name = f"{label}/{image}"
                    self.add(name, split, index, folder / name, clean_title(text), path)


class Food101Json(ImageText):
    """{train,dev,test}.json: lists of {id, img_path, text_tokens, label}, as CGGM has it; images between 0 and 1."""

    name = "food-101-json"
    title = "UPMC Food-101 (CGGM's form)"
    source = "github.com/zrguo/CGGM; research only (web pages)"
    schemes: ClassVar[Mapping[str, str]] = {"clean": "the set's own train, dev and test", "authors": "the same"}
    options: ClassVar[Mapping[str, Choice]] = image_text_options(50)
    parts: ClassVar[Mapping[str, Part]] = {
        split: Part(f"samples of {split}", (f"{split}.json", f"food101/{split}.json"))
        for split in ("train", "dev", "test")
    }
    pictures: ClassVar[Mapping[str, Scale]] = {"image": UNIT}

    def _scan(self) -> None:
        entries = {split: self._entries(split) for split in ("train", "dev", "test")}
        names = sorted({str(entry.get("label")) for entry in entries["train"]})
        self.class_names = tuple(names)
        for split, listed in entries.items():
            path = self.place(split)
            for entry in listed:
                name, tokens = str(entry.get("id")), entry.get("text_tokens")
                index = self.label_of(str(entry.get("label")), names, name, path)
                place = str(entry.get("img_path"))
                if index is None:
                    continue
                if not isinstance(tokens, list):
                    self.skip(name, "no text_tokens", path, bad="Repair it, or leave such samples out.")
                    continue
                text = " ".join(map(str, tokens)).replace(" ##", "")
                kept = "validation" if split == "dev" else split
                self.add(place, kept, index, path.parent / place, text, path, name)

    def _entries(self, split: str) -> list[dict[str, Any]]:
        path = self.place(split)
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"Expected {path} to hold a list of samples, but got {type(content).__name__}.")
        return content
