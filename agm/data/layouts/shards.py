"""WebDataset's shards: tar files, in which the files of one sample follow each other under one name."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from agm.data._files import open_ordinary, text_of
from agm.data.layouts.choices import Choice
from agm.data.layouts.fields import decode_array, decode_field, field_options
from agm.data.layouts.layout import Part, Sample
from agm.data.layouts.lists import classes_of, read_rows
from agm.data.layouts.own_splits import OwnSplits
from agm.data.layouts.pictures import IMAGES
from agm.data.layouts.sound import SOUNDS

__all__ = ["Shards", "decode_entries", "label_in", "modality_of", "shards_of"]

LARGEST = 2**30  # bytes of one entry
BLOCK = 512  # bytes, of which everything in a tar file is a multiple
_SPLIT = re.compile(r"(train|valid|validation|val|dev|test)(?:[-_.0-9]|$)", re.IGNORECASE)
_NAMES = {"train": "train", "test": "test"}
_LABELS = ("cls", "label", "txt.cls")


@dataclass
class Entries:
    """The entries of one sample in a shard: ending -> place and size in bytes."""

    key: str
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


def shards_of(root: Path) -> dict[str, list[Path]]:
    """Tar files by split, by their names or their folders'; "" for those that tell none."""
    made: dict[str, list[Path]] = {}
    for path in sorted([*root.glob("*.tar"), *root.glob("*/*.tar")]):
        match = _SPLIT.match(path.name) or (_SPLIT.match(path.parent.name) if path.parent != root else None)
        split = "" if match is None else _NAMES.get(match[1].lower(), "validation")
        made.setdefault(split, []).append(path)
    return made


def index_shard(path: Path) -> Iterator[Entries]:
    """The samples of a shard, by its headers alone.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no tar file, compressed, or it stops halfway.
    """
    current: Entries | None = None
    try:
        with open_ordinary(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = file.seek(0, 2)
            file.seek(0)
            end = 0
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK * member.isreg()
                folder, _, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                if not member.isreg() or not dot or name.startswith("."):
                    continue  # folders, links and devices are never followed
                if member.size > LARGEST or member.offset_data + member.size > size:
                    raise ValueError(f"an entry of {member.size} bytes, {name}")
                key = f"{folder}/{stem}" if folder else stem
                if current is None or current.key != key:
                    if current is not None:
                        yield current
                    current = Entries(key)
                current.places[ending.lower()] = (member.offset_data, member.size)
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                raise ValueError("no mark at its end")
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(
            f"Expected {path} to be a tar file that is whole and not compressed, but got: {error}. Download it again."
        ) from None
    if current is not None:
        yield current


def modality_of(ending: str) -> tuple[str, str] | None:
    """Name and kind of the modality that an entry with this ending is; None for labels and the like.

    "jpg" is the image, "left.jpg" an image that is called left, "npy" an array.
    """
    name, _, last = ending.rpartition(".")
    kind = {"npy": "array", "txt": "text", "text": "text"}.get(last)
    kind = "image" if f".{last}" in IMAGES else "audio" if f".{last}" in SOUNDS else kind
    return None if kind is None else (name or kind, kind)


def label_in(entries: Mapping[str, bytes], label: str, place: str) -> str | None:
    """The label of a sample, as a text: in its .cls entry, or under a key of its .json; None where there is none."""
    for ending in _LABELS:
        if ending in entries:
            return text_of(Path(place), entries[ending]).strip()
    if "json" in entries:
        try:
            content = json.loads(entries["json"])
        except (ValueError, RecursionError):
            raise ValueError(f"Expected the json entry of {place} to be JSON, but got another. Repair it.") from None
        found = content.get(label) if isinstance(content, dict) else None
        return None if found is None else str(found)
    return None


def decode_entries(
    entries: Mapping[str, bytes],
    options: Mapping[str, Any],
    place: str,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Modality -> tensor of the entries of one sample, ending -> content, in the order of their endings."""
    made = {}
    for ending in sorted(entries):
        found = modality_of(ending)
        if found is None:
            continue
        name, kind = found
        content: Any = entries[ending]
        if kind == "array":
            content = decode_array(content, f"{ending} of {place}")
        elif kind == "text":
            content = text_of(Path(place), content)
        made[name] = decode_field(kind, content, options, f"{ending} of {place}", training, generator)
    return made


class Shards(OwnSplits):
    """A folder of tar files, train-000000.tar ... and test-000000.tar, or in folders of these names.

    A sample's label stands in its .cls entry or in its .json under the key of the option `label`: a class index, or
    a name; the names of the classes in classes.txt, one a line, else sorted. The headers are read once; then samples
    are read in any order from where they lie. `stream_shards` reads them one after the other instead.
    """

    name = "webdataset"
    title = "a WebDataset"
    source = "shards in tar files"
    options: ClassVar[Mapping[str, Choice]] = {
        "label": Choice("label", "the key of the label in .json entries", "the name of a key", str),
        **field_options(),
    }
    parts: ClassVar[Mapping[str, Part]] = {
        "shards": Part("shards", ("*.tar", "*/*.tar")),
        "classes": Part("names of the classes", ("classes.txt", "class_names.txt"), needed=False, sign=False),
    }

    def _scan(self) -> None:
        found: list[tuple[str, Path, Entries, str]] = []
        endings: dict[str, str] = {}
        for split, paths in shards_of(self.root).items():
            for path in paths:
                self._index(path, split or "train", found, endings)
        self._take(endings)
        names = self._class_names([label for *_, label in found])
        self.class_names = tuple(names)
        for split, path, entries, label in found:
            if label.isdigit() and label not in names and int(label) < len(names):
                label = names[int(label)]
            index = self.label_of(label, names, entries.key, path)
            if index is not None:
                self.samples.append(Sample(entries.key, split, index, {"shard": path}, extra=entries.places))

    def _index(
        self, path: Path, split: str, found: list[tuple[str, Path, Entries, str]], endings: dict[str, str]
    ) -> None:
        for entries in list(index_shard(path)):  # all of them first: whether the file is whole
            modalities = dict(filter(None, (modality_of(ending) for ending in sorted(entries.places))))
            if not endings:
                endings.update(modalities)
            labelled = {ending: entries.places[ending] for ending in (*_LABELS, "json") if ending in entries.places}
            label = label_in(_contents(path, labelled), self.chosen["label"], f"{entries.key} in {path}")
            if label is None or modalities.keys() != endings.keys():
                reason = "no label" if label is None else f"other modalities than {', '.join(endings)}"
                self.skip(
                    entries.key,
                    reason,
                    path,
                    bad="Repair it, or leave such samples out with agm data convert --skip-bad.",
                )
                continue
            found.append((split, path, entries, label))

    def _class_names(self, labels: list[str]) -> list[str]:
        path = self.found["classes"]
        if path is not None:
            return [" ".join(cells) for _, cells in read_rows(path, "\n")]
        return list(classes_of(labels))

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        path = sample.files["shard"]
        wanted = {ending: place for ending, place in sample.extra.items() if modality_of(ending)}
        contents = _contents(path, wanted)
        return decode_entries(contents, self.chosen, f"{sample.name} in {path}", training, generator)


def _contents(path: Path, places: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
    if not places:
        return {}
    made = {}
    with open_ordinary(path) as file:
        for ending, (offset, size) in places.items():
            file.seek(offset)
            made[ending] = file.read(size)
            if len(made[ending]) < size:
                raise ValueError(f"Expected {path} to be as long as when it was opened, but got less of it.")
    return made
