"""Datasets that Hugging Face's `datasets` saved to disk: Arrow tables, mapped rather than read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.choices import Choice
from agm.data.layouts.extras import needed
from agm.data.layouts.fields import decode_field, field_options
from agm.data.layouts.layout import Part, Sample
from agm.data.layouts.lists import classes_of, read_json, safe_name
from agm.data.layouts.own_splits import OwnSplits

__all__ = ["HuggingFace", "RowDecoder"]

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_TEXTS = ("text", "caption", "title", "sentence", "transcript", "transcription", "question")
_LABELS = ("label", "labels", "target", "class", "category")


class RowDecoder:
    """Which columns of a table are modalities, and how their cells become tensors.

    Args:
        features: of the table, as `datasets` has them.
        columns: names of the modalities; by default all images, sounds, arrays and lists of numbers, and texts that
            are called so (text, caption, title ...).
        label: the column of labels; by default the one of class labels, or the one that is called label or target.

    Raises:
        ValueError: a column is not there, or cannot be a modality; or no column can be the label.
    """

    def __init__(self, features: Mapping[str, Any], columns: Sequence[str] = (), label: str = "") -> None:
        self.features = dict(features)
        self.label = label or self._find_label()
        if self.label not in self.features:
            raise ValueError(
                f"Expected option `label` to be one of {', '.join(self.features)}, but got {self.label!r}."
            )
        kinds = {
            name: kind for name, feature in self.features.items() if (kind := _kind(feature)) and name != self.label
        }
        wanted = columns or [name for name, kind in kinds.items() if kind != "text" or name.lower() in _TEXTS]
        for name in wanted:
            if name not in kinds:
                raise ValueError(
                    f"Expected option `columns` to name images, sounds, arrays or texts ({', '.join(kinds)}), "
                    f"but got {name!r}."
                )
        if not wanted:
            raise ValueError(
                f"Expected a column that is a modality, but got {', '.join(self.features)}. Set `columns`."
            )
        self.kinds = {name: kinds[name] for name in wanted}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of a column of class labels; empty for others."""
        return tuple(getattr(self.features[self.label], "names", None) or ())

    def undecoded(self, table: Any) -> Any:
        """The table with images and sounds as their files' content."""
        datasets = needed("datasets")
        for name, kind in self.kinds.items():
            if kind in ("image", "audio"):
                feature = datasets.Image(decode=False) if kind == "image" else datasets.Audio(decode=False)
                table = table.cast_column(name, feature)
        return table

    def decode(
        self,
        row: Mapping[str, Any],
        options: Mapping[str, Any],
        place: str,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Modality -> tensor of a row; errors call it `place`."""
        made = {}
        for name, kind in self.kinds.items():
            content = row[name]
            if kind in ("image", "audio"):
                content = content.get("bytes") if isinstance(content, Mapping) else None
                if not isinstance(content, bytes):  # a path, which may lead anywhere
                    raise ValueError(
                        f"Expected `{name}` in {place} to hold the file's content, but got none. "
                        "Embed it: save the dataset again with datasets.Dataset.save_to_disk."
                    )
            made[name] = decode_field(kind, content, options, f"`{name}` in {place}", training, generator)
        return made

    def _find_label(self) -> str:
        classes = [name for name, feature in self.features.items() if type(feature).__name__ == "ClassLabel"]
        named = [name for name in _LABELS if name in self.features]
        found = classes if len(classes) == 1 else [name for name in named if name in classes] or named
        if not found:
            raise ValueError(f"Expected a column of labels, but got {', '.join(self.features)}. Set option `label`.")
        return found[0]


class HuggingFace(OwnSplits):
    """A folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`. Its rows are mapped from the disk.

    `read` gives images (3, 224, 224) float32, sounds by the front end of the option `audio`, arrays as they are, and
    texts as token ids.
    """

    name = "hugging-face"
    title = "a dataset of Hugging Face"
    source = "datasets.save_to_disk"
    options: ClassVar[Mapping[str, Choice]] = {
        "columns": Choice("", "names of the modalities, with commas between", "names with commas between", str),
        "label": Choice("", "the column of labels", "the name of a column", str),
        **field_options(),
    }
    parts: ClassVar[Mapping[str, Part]] = {
        "data": Part("the description of the tables", ("dataset_dict.json", "dataset_info.json"))
    }

    def _scan(self) -> None:
        self._tables = self._open()
        columns = [name.strip() for name in self.chosen["columns"].split(",") if name.strip()]
        first = next(iter(self._tables.values()))
        self._decoder = RowDecoder(first.features, columns, self.chosen["label"])
        self._take(self._decoder.kinds)
        labels = {split: self._labels(split) for split in self._tables}
        names = self._decoder.class_names or classes_of(label for listed in labels.values() for label in listed)
        self.class_names = names
        for split, listed in labels.items():
            for row, label in enumerate(listed):
                index = self.label_of(label, names, f"{split} {row}", self.place("data"))
                if index is not None:
                    self.samples.append(Sample(f"{split} {row}", SPLITS.get(split, split), index, row=row, extra=split))
        self._views: dict[str, tuple[Any, Any]] = {}

    def _require_inside(self) -> None:
        """Splits and files that the description names are joined to the folder, and may not lead out of it."""
        whole, folders = self.root / "dataset_dict.json", [self.root]
        named = [(whole, "splits", split) for split in _named(whole, "splits")] if whole.exists() else []
        if named:
            folders = [self.root / split for _, _, split in named if safe_name(split)]
        for folder in folders:
            state = folder / "state.json"
            if state.exists():
                named += [(state, "_data_files", name) for name in _named(state, "_data_files")]
        for path, key, name in named:
            if not safe_name(name):
                raise ValueError(
                    f"Expected `{key}` in {path} to name what is in its folder, but got {name!r}, which leads "
                    "out of it. Do not use this download."
                )

    def _open(self) -> dict[str, Any]:
        datasets = needed("datasets")
        self._require_inside()
        try:
            content = datasets.load_from_disk(str(self.root))
        except Exception as error:  # of Arrow's readers, which fail in many ways
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"Expected {self.root} to be a folder of datasets.save_to_disk, but got: {reason}. Save it again."
            ) from None
        tables = dict(content) if isinstance(content, dict) else {str(content.split or "train"): content}
        kept = {split: table for split, table in tables.items() if split in SPLITS or split == "test"}
        for split in tables:
            if split not in kept:
                self.notes.append(f"split {split!r} is neither train, validation nor test, and left out")
        return kept or {"train": next(iter(tables.values()))}

    def _views_of(self, table: Any) -> tuple[Any, Any]:
        """The table with files and texts as Python's values, and with arrays as numpy's; None for no columns."""
        kinds = self._decoder.kinds
        table = self._decoder.undecoded(table.select_columns(list(kinds)))
        plain = [name for name, kind in kinds.items() if kind != "array"]
        arrays = [name for name, kind in kinds.items() if kind == "array"]
        return (
            table.with_format(None, columns=plain) if plain else None,
            table.with_format("numpy", columns=arrays) if arrays else None,
        )

    def _labels(self, split: str) -> list[str]:
        values = self._tables[split].with_format("numpy", columns=[self._decoder.label])[self._decoder.label][:]
        names = self._decoder.class_names
        if names:
            return [names[int(value)] if 0 <= int(value) < len(names) else str(value) for value in values]
        return ["" if value is None or value != value else str(value) for value in np.asarray(values).tolist()]

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        split = sample.extra
        if split not in self._views:
            self._views[split] = self._views_of(self._tables[split])
        files, arrays = self._views[split]
        row = {**({} if files is None else files[sample.row]), **({} if arrays is None else arrays[sample.row])}
        return self._decoder.decode(
            row, self.chosen, f"row {sample.row} of {split} in {self.root}", training, generator
        )


def _kind(feature: Any) -> str:
    """What a column can be: an image, a sound, an array, a text, or nothing ("")."""
    kind = type(feature).__name__
    if kind in ("Image", "Audio"):
        return kind.lower()
    if kind.startswith("Array"):
        return "array"
    if kind in ("List", "Sequence", "LargeList"):
        inner = feature.feature
        return "array" if _kind(inner) == "array" or _is_number(inner) else ""
    return "text" if kind == "Value" and "string" in str(feature.dtype) else ""


def _is_number(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and dtype.startswith(("float", "int", "uint", "double", "bool"))


def _named(path: Path, key: str) -> list[str]:
    """Names under a key of a description: of splits, or of files, which are {"filename": name}."""
    content = read_json(path)
    entries = content.get(key) if isinstance(content, dict) else None
    entries = entries if isinstance(entries, list) else []
    return [str(entry.get("filename") if isinstance(entry, dict) else entry) for entry in entries]
