"""AV-MNIST: handwritten digits that lost three quarters of their variance, with spoken ones in noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.layout import Layout, Part, Sample
from agm.data.layouts.splits import ninety_percent
from agm.data.layouts.stored import map_array

__all__ = ["AVMnist"]


class AVMnist(Layout):
    """Arrays of pixels and of spectrograms, 0 to 255, and labels; nothing but the rows that are used is read.

    `read` gives "audio" (1, 112, 112) and "image" (1, 28, 28) float32 within 0 and 1.
    """

    name = "av-mnist"
    title = "AV-MNIST"
    source = "MultiBench's avmnist.tar.gz; of MNIST (CC BY-SA 3.0), FSDD (CC BY-SA 4.0) and ESC-50 (CC BY-NC 3.0)"
    modalities = ("audio", "image")
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "MultiBench's: the last twelfth of train (5,000 of 60,000) for validation",
        "authors": "AGM's: the first 90 % of train and of test; what is left of both as dep",
    }
    parts: ClassVar[Mapping[str, Part]] = {
        f"{split}_{kind}": Part(f"the {kind} arrays of {split}", (path, f"avmnist/{path}"))
        for split in ("train", "test")
        for kind, path in (
            ("image", f"image/{split}_data.npy"),
            ("audio", f"audio/{split}_data.npy"),
            ("labels", f"{split}_labels.npy"),
        )
    }

    def _scan(self) -> None:
        self.class_names = tuple("0123456789")
        self._mapped: dict[Path, np.ndarray] = {}
        for split in ("train", "test"):
            labels = map_array(self.place(f"{split}_labels")).reshape(-1)
            if labels.dtype.kind not in "fiu":
                path = self.place(f"{split}_labels")
                raise ValueError(f"Expected {path} to hold numbers, but got {labels.dtype}. Is it the right file?")
            for kind, size in (("image", 28 * 28), ("audio", 112 * 112)):
                path = self.place(f"{split}_{kind}")
                values = map_array(path)
                if len(values) != len(labels) or values[:0].size or values.size != len(labels) * size:
                    raise ValueError(
                        f"Expected {path} to hold {len(labels)} rows of {size} values, one a label, "
                        f"but got shape {values.shape}. Download it again."
                    )
                if values.dtype.kind not in "fiu":
                    raise ValueError(f"Expected {path} to hold numbers, but got {values.dtype}. Is it the right file?")
            for row, label in enumerate(labels.tolist()):
                index = self.number_of(label, self.class_names, f"{split} {row}", self.place(f"{split}_labels"))
                if index is not None:
                    self.samples.append(Sample(f"{split} {row}", split, index, row=row))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # else whole files would go to each worker

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        listed = self.listed()
        if scheme == "authors":
            return ninety_percent(listed)
        train = listed["train"]
        kept = len(train) - len(train) // 12
        return {**listed, "train": train[:kept], "validation": train[kept:]}

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        made = {}
        for kind, size in (("audio", 112), ("image", 28)):
            path = self.place(f"{sample.split}_{kind}")
            if path not in self._mapped:
                self._mapped[path] = map_array(path)
            values = np.asarray(self._mapped[path][sample.row], dtype=np.float32).reshape(1, size, size)
            if not np.isfinite(values).all():
                raise ValueError(f"Expected {path} to be finite, but got NaN or infinity in row {sample.row}.")
            made[kind] = torch.from_numpy(values / np.float32(255))
        return made
