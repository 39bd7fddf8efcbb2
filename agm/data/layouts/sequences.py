"""Pickles of padded sequences, {split: {modality: (N, T, D), labels, id}}: MultiBench's and MulT's form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, one_of
from agm.data.layouts.layout import Layout, Sample
from agm.data.layouts.pickles import load_pickle

__all__ = ["SequencePickle", "cut_sequences"]

_SPLITS = {"train": ("train",), "validation": ("valid", "validation", "dev"), "test": ("test",)}


def cut_sequences(sequences: dict[str, np.ndarray], align: str, normalise: str = "none") -> dict[str, np.ndarray]:
    """Sequences with zeros in front, begun where they begin, and filled with zeros at the end to their old length.

    Args:
        sequences: modality -> (T, D).
        align: "text": all from the first step that has a word; "each": every one from its own first step; "none".
        normalise: from there on: less the mean of each channel, by the deviation of each ("channel") or of all
            ("global"); channels that are constant become 0. "none": as they are.

    Source: MultiBench's affect loader (aligned and not), which AGM's takes over.
    """
    made = {}
    for name, values in sequences.items():
        leading = sequences["text"] if align == "text" else values
        present = (leading != 0).any(axis=1)
        first = int(present.argmax()) if align != "none" else 0  # 0 too where there is nothing
        kept = _standardised(values[first:], normalise)
        made[name] = np.concatenate([kept, np.zeros((first, values.shape[1]), np.float32)])
    return made


class SequencePickle(Layout):
    """Three padded sequences a sample in one pickle, which is read by a reader that runs nothing."""

    modalities = ("vision", "audio", "text")
    drops_silent: ClassVar[bool] = True  # leaves out samples whose text sums to zero
    options: ClassVar[Mapping[str, Choice]] = {
        "align": one_of("text", "each", "none", help="where sequences begin: with the first word, each by itself"),
        "normalise": one_of(
            "none", "global", "channel", help="of each sequence: deviation of all (AGM) or of each channel (MultiBench)"
        ),
    }

    @abstractmethod
    def _label(self, value: float) -> tuple[int, str]:
        """The class index of a stored label and "", or -1 and why the sample is left out."""

    def _number(self, value: float) -> float | None:
        """The number to be predicted; None where it is a class."""
        return None

    @abstractmethod
    def _names(self) -> tuple[str, ...]:
        """One name a class."""

    def _scan(self) -> None:
        path = self.place("data")
        self.class_names = self._names()
        content = load_pickle(path)
        self._arrays: dict[str, dict[str, np.ndarray]] = {}
        infinite = 0
        for split, keys in _SPLITS.items():
            part = next((content[key] for key in keys if isinstance(content, dict) and key in content), None)
            if not isinstance(part, dict):
                found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
                raise ValueError(
                    f"Expected {path} to hold the split {keys[0]!r}, but got {found}. Is it the right file?"
                )
            self._arrays[split] = arrays = {name: self._sequence(part, name, split) for name in self.modalities}
            labels = np.asarray(part.get("labels"))
            lengths = {len(values) for values in arrays.values()} | {len(labels) if labels.ndim else 0}
            if len(lengths) > 1:
                raise ValueError(
                    f"Expected the arrays of {split} in {path} to have as many rows as its labels, "
                    f"but got {sorted(lengths)}. Download it again."
                )
            for row, name in enumerate(self._row_names(part.get("id"), split, len(labels))):
                infinite += int(np.isneginf(arrays["audio"][row]).sum())
                self._add(name, split, row, labels[row], {key: values[row] for key, values in arrays.items()})
        if infinite:
            self.notes.append(f"{infinite} values of -inf in audio are read as 0")

    def _sequence(self, part: dict[Any, Any], name: str, split: str) -> np.ndarray:
        values = part.get(name)
        if not isinstance(values, np.ndarray) or values.ndim != 3 or values.dtype.kind not in "fiu":
            found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise ValueError(
                f"Expected `{name}` of {split} in {self.place('data')} to be an array (N, T, D) of numbers, "
                f"but got {found}. Is it the right file?"
            )
        return values

    def _row_names(self, ids: Any, split: str, number: int) -> list[str]:
        """Of each row: of (video, start, end) and the like the parts joined; numbers where there are none."""
        made = [f"{split} {row}" for row in range(number)]
        if ids is None or len(ids) != number:
            return made
        for row in range(number):
            parts = [
                part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in _flat(ids[row])
            ]
            made[row] = " ".join(parts) or made[row]
        return made

    def _add(self, name: str, split: str, row: int, label: Any, values: dict[str, np.ndarray]) -> None:
        path = self.place("data")
        number = np.asarray(label, dtype=object).reshape(-1)
        try:
            value = float(number[0])
        except (IndexError, TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            self.skip(
                name,
                f"a label that is no number in row {row} of {split}",
                path,
                bad="Repair it, or use agm data convert --skip-bad.",
            )
            return
        if self.drops_silent and not values["text"].sum():
            self.skip(name, "no words", path)
            return
        for key, array in values.items():
            if np.isnan(array).any() or np.isposinf(array).any() or (key != "audio" and np.isneginf(array).any()):
                reason = f"NaN or infinity in {key}, row {row} of {split}"
                self.skip(
                    name, reason, path, bad="Repair it, or leave such samples out with agm data convert --skip-bad."
                )
                return
        index, reason = self._label(value)
        if index < 0:
            self.skip(name, reason, path)
            return
        group = name.split(" ")[0] if " " in name else ""
        self.samples.append(Sample(name, split, index, group=group, row=row, number=self._number(value)))

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        rows = {name: values[sample.row].astype(np.float32) for name, values in self._arrays[sample.split].items()}
        rows["audio"][np.isneginf(rows["audio"])] = 0
        made = cut_sequences(rows, self.chosen["align"], self.chosen["normalise"])
        return {name: torch.from_numpy(values) for name, values in made.items()}


def _flat(value: Any) -> list[Any]:
    return list(np.asarray(value, dtype=object).reshape(-1))


def _standardised(values: np.ndarray, how: str) -> np.ndarray:
    if how == "none" or len(values) < 2:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = values.std(axis=0, ddof=1) if how == "channel" else values.std(ddof=1)
        made = (values - values.mean(axis=0)) / deviation
    return np.nan_to_num(made, posinf=0, neginf=0).astype(np.float32)
