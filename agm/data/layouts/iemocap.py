"""IEMOCAP as features (MMIN's and CGGM's form): what ten actors say, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, number
from agm.data.layouts.h5_files import H5Table
from agm.data.layouts.layout import Layout, Part, Sample
from agm.data.layouts.stored import map_array

__all__ = ["Iemocap"]

_MOST = 1000  # classes
_LENGTHS = {"audio": 350, "vision": 50, "text": 22}


class Iemocap(Layout):
    """A/comparE.h5, V/denseface.h5, L/bert_large.h5 by utterance, and target/CV/{trn,val,tst}_{label,int2name}.npy.

    `read` gives "audio" (350, 130) less its mean by its deviation of this fold, "vision" (50, 342) and "text"
    (22, 1024) float32, cut or filled with zeros at the end.
    """

    name = "iemocap"
    title = "IEMOCAP (features)"
    source = "features: github.com/AIM3-RUC/MMIN; licence on request from USC"
    modalities = ("audio", "vision", "text")
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "train, validation and test of one of ten folds",
        "authors": "the same",
    }
    options: ClassVar[Mapping[str, Choice]] = {"fold": number(1, 1, 12, "of the folds in target/")}
    parts: ClassVar[Mapping[str, Part]] = {
        "audio": Part("features of the voice", ("A/comparE.h5", "A/comparE_raw.h5")),
        "vision": Part("features of the face", ("V/denseface.h5",)),
        "text": Part("features of the words", ("L/bert_large.h5",)),
        "target": Part("labels by fold", ("target",)),
        "scale": Part("mean and deviation by fold", ("A/comparE_mean_std.h5",), needed=False, sign=False),
    }

    def _scan(self) -> None:
        fold = str(self.chosen["fold"])
        folder = self.place("target") / fold
        if not folder.is_dir():
            raise ValueError(f"Expected option `fold` to be one in {folder.parent}, but got {fold}.")
        self._tables = {name: H5Table(self.place(name)) for name in self.modalities}
        self._scale: tuple[np.ndarray, np.ndarray] | None = None
        if self.found["scale"] is not None:
            table = H5Table(self.place("scale"))
            mean, deviation = table[f"{fold}/mean"], table[f"{fold}/std"]
            self._scale = mean, np.where(deviation == 0, 1, deviation)
        else:
            self.notes.append("without A/comparE_mean_std.h5 the voice is not standardised")
        classes = 0
        for split, short in (("train", "trn"), ("validation", "val"), ("test", "tst")):
            path = folder / f"{short}_label.npy"
            labels, names = self._labels(path), np.asarray(map_array(folder / f"{short}_int2name.npy"))
            if len(names) != len(labels) or not names.size:
                raise ValueError(
                    f"Expected {path} to have a label for each of the {len(names)} names beside it, "
                    f"but got {len(labels)}. Download them again."
                )
            classes = max(classes, *(label + 1 for label in labels), 4)
            for row, name in enumerate(names.reshape(len(names), -1)[:, 0].tolist()):
                self._add(_text(name), split, row, labels[row])
        self.class_names = tuple(f"class {label}" for label in range(classes))
        self.notes.append("the labels are numbers, which the features do not name")

    def _labels(self, path: Path) -> list[int]:
        """Class indices, of one-hot rows or numbers; -1 for what is neither."""
        labels = np.asarray(map_array(path))
        if labels.dtype.kind not in "fiub":
            raise ValueError(f"Expected {path} to hold numbers, but got {labels.dtype}. Is it the right file?")
        if labels.ndim == 2 and labels.shape[1] > 1:
            single = np.isfinite(labels).all(axis=1) & (labels == 1).any(axis=1)
            return [int(label) if one else -1 for label, one in zip(labels.argmax(axis=1), single, strict=True)]
        return [
            int(label) if np.isfinite(label) and 0 <= label < _MOST and label == int(label) else -1
            for label in labels.reshape(-1).tolist()
        ]

    def _add(self, name: str, split: str, row: int, label: int) -> None:
        missing = [modality for modality, table in self._tables.items() if name not in table]
        if missing:
            self.skip(name, f"no {' and no '.join(missing)}", self.place(missing[0]))
        elif label < 0:
            self.skip(
                name,
                f"a label that is no class, in row {row} of {split}",
                self.place("target"),
                bad="Correct it, or leave such samples out with agm data convert --skip-bad.",
            )
        else:
            self.samples.append(Sample(name, split, label, group=name[:5], row=row))  # Ses01: two actors

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        made = {}
        for name, table in self._tables.items():
            values = table[sample.name]
            if values.ndim != 2 or not np.isfinite(values).all():
                raise ValueError(f"Expected {sample.name!r} in {table.path} to be finite (T, D), but got other values.")
            if name == "audio" and self._scale is not None:
                values = (values - self._scale[0]) / self._scale[1]
            filled = np.zeros((_LENGTHS[name], values.shape[1]), dtype=np.float32)
            filled[: len(values)] = values[: len(filled)]
            made[name] = torch.from_numpy(filled)
        return made


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
