"""IEMOCAP as features (MMIN's and CGGM's form): what ten actors say, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, number
from agm.data.layouts.h5_files import H5Table
from agm.data.layouts.layout import Layout, Part, Sample
from agm.data.layouts.stored import map_array

__all__ = ["Iemocap"]

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
            labels = np.asarray(map_array(path))
            labels = labels.argmax(axis=1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
            names = np.asarray(map_array(folder / f"{short}_int2name.npy")).reshape(len(labels), -1)[:, 0]
            classes = max(classes, int(labels.max()) + 1, 4)
            for row, name in enumerate(names.tolist()):
                self._add(_text(name), split, row, int(labels[row]))
        self.class_names = tuple(f"class {label}" for label in range(classes))
        self.notes.append("the labels are numbers, which the features do not name")

    def _add(self, name: str, split: str, row: int, label: int) -> None:
        missing = [modality for modality, table in self._tables.items() if name not in table]
        if missing:
            self.skip(name, f"no {' and no '.join(missing)}", self.place(missing[0]))
        elif label < 0:
            self.skip(name, f"label {label}", self.place("target"), bad="Correct it.")
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
