"""Windows of recordings by sensors that a person wears."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data._files import open_ordinary
from agm.data.layouts.choices import Choice, number, one_of
from agm.data.layouts.layout import Layout, Sample
from agm.data.layouts.splits import by_group

__all__ = ["Recording", "SensorWindows", "by_person", "order_option", "ordered", "read_numbers", "window_options"]


@dataclass
class Recording:
    """What the sensors of one person said: `values` (T, D) float32, `labels` (T,) class indices, -1 for none."""

    person: str
    values: np.ndarray
    labels: np.ndarray
    file: Path


def by_person(samples: Sequence[Sample], scheme: str) -> dict[str, list[Sample]]:
    """Whole persons to each split ("clean"), or windows of all of them, drawn by their names ("random")."""
    if scheme == "clean":
        return by_group(samples)
    return by_group([replace(sample, group=sample.name) for sample in samples], 0.1, 0.1)


def window_options(window: int, step: int) -> dict[str, Choice]:
    return {
        "window": number(window, 2, 10_000, "steps of a sample"),
        "step": number(step, 1, 10_000, "steps from one sample to the next"),
        **order_option(),
    }


def order_option() -> dict[str, Choice]:
    return {
        "first": one_of(
            "channels", "steps", help="(D, T), as networks for activities read it; or (T, D), a sequence for agm train"
        )
    }


def ordered(channels: np.ndarray, first: str) -> Tensor:
    """(D, T) values in the order of the option `first`, in memory of their own."""
    return torch.from_numpy(np.array(channels.T if first == "steps" else channels, dtype=np.float32, order="C"))


def read_numbers(path: Path, columns: int) -> np.ndarray:
    """A text file of numbers between spaces, (T, columns) float32; NaN where it says so.

    Raises:
        OSError: it cannot be opened.
        ValueError: it holds other things, or lines of another length.
    """
    with open_ordinary(path) as file:
        try:
            if not file.read(1):
                raise ValueError("an empty file")
            file.seek(0)
            made = np.loadtxt(file, dtype=np.float32, ndmin=2, encoding="utf-8")
        except (UnicodeDecodeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(
                f"Expected {path} to hold {columns} numbers a line, but got: {reason}. Download it again."
            ) from None
    if made.shape[1] != columns:
        raise ValueError(
            f"Expected {path} to hold {columns} numbers a line, but got {made.shape[1]}. Is it the right file?"
        )
    return made


class SensorWindows(Layout):
    """Windows that lie within one activity of one person; the modalities are kinds of sensors, (D, window) each.

    Missing values take the place of the last that was there, or 0 at the beginning.
    """

    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "whole persons to train, validation and test: a tenth and a fifth of them for the last two",
        "random": "windows of all persons, a tenth each for validation and test, as many papers cut them",
    }
    channels: ClassVar[Mapping[str, tuple[int, ...]]]  # modality -> columns of the recordings

    @abstractmethod
    def _recordings(self) -> Iterator[Recording]:
        """One after the other."""

    def _scan(self) -> None:
        self.modalities = tuple(self.channels)
        self._windows: list[np.ndarray] = []
        lost = 0
        for recording in self._recordings():
            values = recording.values
            missing = ~np.isfinite(values)
            used = missing[:, sorted({column for columns in self.channels.values() for column in columns})]
            if used.any():
                lost += int(used.any(axis=1).sum())
                values = _carried(values, missing)
            self._cut(recording, values)
        if lost:
            self.notes.append(f"{lost} steps with missing values take the last ones that were there")

    def _cut(self, recording: Recording, values: np.ndarray) -> None:
        window, step = self.chosen["window"], self.chosen["step"]
        changes = np.flatnonzero(np.diff(recording.labels)) + 1
        edges = [0, *changes.tolist(), len(values)]
        for low, high in pairwise(edges):
            label = int(recording.labels[low])
            if label < 0:
                continue
            for begin in range(low, high - window + 1, step):
                name = f"{recording.file.name} {recording.person} {begin}"
                row = len(self._windows)
                self.samples.append(Sample(name, "train", label, group=recording.person, row=row))
                self._windows.append(values[begin : begin + window])

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        return by_person(self.samples, scheme)

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        values = self._windows[sample.row]
        return {
            name: ordered(values[:, list(columns)].T, self.chosen["first"]) for name, columns in self.channels.items()
        }


def _carried(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    steps = np.where(missing, -1, np.arange(len(values))[:, None])
    last = np.maximum.accumulate(steps, axis=0)
    made = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last < 0, 0, made).astype(np.float32)
