"""What a multimodal dataset is: named inputs with one label a sample, in two or three splits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

__all__ = ["MultimodalData", "Split", "Task", "check_modalities", "task_of"]

Task = Literal["classes", "labels", "numbers"]

# AGM's forward takes the labels by this keyword, so no modality can have the name.
_RESERVED = ("target",)


@dataclass(frozen=True, eq=False)
class Split:
    """Samples of one split, all in memory.

    Args:
        inputs: modality -> (N, ...): float32 (finite); int64 token ids, of which 0 is padding; or uint8 (N, T) text in
            UTF-8, padded with zeros.
        target: (N,) int64, a class index a sample; (N, L) bool, which of L labels it has; or (N, K) float32, finite
            numbers.
        present: (N, M) bool, which samples have which modalities, in the order of `inputs`; None: all have all. The
            input of a modality that a sample lacks is zero, whatever is given there.

    Raises:
        TypeError: a value is no tensor, or has another dtype.
        ValueError: no modality or no sample, lengths that differ, NaN or infinity, a sample without any modality.
    """

    inputs: dict[str, torch.Tensor]
    target: torch.Tensor
    present: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_target(self.target)
        if not isinstance(self.inputs, Mapping) or not self.inputs:
            raise ValueError(
                "Expected `inputs` to be a mapping with at least one modality, "
                f"but got {self.inputs!r}. Give one tensor a modality."
            )
        if self.present is not None:
            self._take_out()
        for modality, values in self.inputs.items():
            _check_name(modality)
            _check_input(modality, values, len(self.target))

    def _take_out(self) -> None:
        """Zeros in the place of what samples lack."""
        present = self.present
        shape = (len(self.target), len(self.inputs))
        if not isinstance(present, torch.Tensor) or present.dtype != torch.bool or tuple(present.shape) != shape:
            found = f"{present.dtype} {tuple(present.shape)}" if isinstance(present, torch.Tensor) else repr(present)
            raise ValueError(
                f"Expected `present` to be bool of shape {shape}, a column a modality, but got {found}. Say of every "
                "sample which modalities it has."
            )
        if not bool(present.any(dim=1).all()):
            row = int((~present.any(dim=1)).nonzero()[0])
            raise ValueError(f"Expected every sample to have a modality, but got none in sample {row}. Leave it out.")
        if bool(present.all()):
            object.__setattr__(self, "present", None)
            return
        inputs = {}
        for place, (name, values) in enumerate(self.inputs.items()):
            lacking = ~present[:, place]
            if isinstance(values, torch.Tensor) and len(values) == shape[0] and bool(lacking.any()):
                values = values.clone()
                values[lacking] = 0
            inputs[name] = values
        object.__setattr__(self, "inputs", inputs)

    def take(self, rows: torch.Tensor | slice) -> Split:
        """These samples, in this order."""
        present = None if self.present is None else self.present[rows]
        return Split({name: values[rows] for name, values in self.inputs.items()}, self.target[rows], present)

    def select(self, modalities: Sequence[str]) -> Split:
        """The samples with these modalities alone, in this order; those that have none of them are left out.

        Raises:
            ValueError: none, one twice, one that is not there, or no sample has one of them.
        """
        check_modalities(modalities, self.inputs)
        inputs = {name: self.inputs[name] for name in modalities}
        if self.present is None:
            return Split(inputs, self.target)
        places = [list(self.inputs).index(name) for name in modalities]
        present = self.present[:, places]
        some = present.any(dim=1)
        if not bool(some.any()):
            raise ValueError(
                f"Expected samples that have one of the modalities {', '.join(modalities)}, but got none. Choose other "
                "modalities."
            )
        return Split({name: values[some] for name, values in inputs.items()}, self.target[some], present[some])

    def to(self, device: torch.device | str) -> Split:
        """The samples on a device."""
        present = None if self.present is None else self.present.to(device)
        return Split({name: values.to(device) for name, values in self.inputs.items()}, self.target.to(device), present)

    def __len__(self) -> int:
        return len(self.target)

    @property
    def task(self) -> Task:
        """What there is to predict, by the target: "classes", "labels" or "numbers"."""
        return task_of(self.target)

    def batches(self, size: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Inputs and target of `size` samples at a time, the last ones perhaps fewer, in the order of the split.

        Raises:
            ValueError: `size` < 1.
        """
        if size < 1:
            raise ValueError(f"Expected argument `size` to be 1 or more, but got {size}. Give samples a batch.")
        for begin in range(0, len(self), size):
            rows = slice(begin, begin + size)
            yield {name: values[rows] for name, values in self.inputs.items()}, self.target[rows]


@dataclass(frozen=True, eq=False)
class MultimodalData:
    """A dataset of one or more modalities, and one task: a class a sample, any number of labels, or numbers.

    Args:
        name: what tables and run folders call it.
        train, test: the samples of each split; the modalities of all are put into the order of `train`.
        validation: a third split, or None.
        class_names: one name a class, label or number; class index i is `class_names[i]`.

    Raises:
        TypeError: a split is no `Split`.
        ValueError: splits whose modalities, dtypes or tasks differ, a label outside [0, num_classes), or class names
            that are missing or repeated.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(
                "Expected `class_names` to be one distinct name a class, "
                f"but got {self.class_names!r}. Name every class once."
            )
        for split_name, split in self.splits.items():
            if not isinstance(split, Split):
                raise TypeError(
                    f"Expected `{split_name}` to be a Split, but got {type(split).__name__}. "
                    "Wrap inputs and target in agm.data.Split."
                )
            self._check_against_train(split_name, split)
            if tuple(split.inputs) != self.modalities:  # the columns of `present` are in that order
                object.__setattr__(self, split_name, split.select(self.modalities))

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name, in the order train, validation, test."""
        validation = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **validation, "test": self.test}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the training inputs."""
        return tuple(self.train.inputs)

    @property
    def complete(self) -> bool:
        """Whether every sample has every modality."""
        return all(split.present is None for split in self.splits.values())

    def select(self, modalities: Sequence[str]) -> MultimodalData:
        """The dataset with these modalities alone, in this order.

        Raises:
            ValueError: none, one twice, one that is not there, or a split in which no sample has one of them.
        """
        return self.map_splits(lambda _, split: split.select(modalities))

    def map_splits(self, function: Callable[[str, Split], Split]) -> MultimodalData:
        """The dataset with what `function` makes of each split, which it gets with its name."""
        parts = {name: function(name, split) for name, split in self.splits.items()}
        return replace(self, train=parts["train"], validation=parts.get("validation"), test=parts["test"])

    @property
    def num_classes(self) -> int:
        """Of classes, labels or numbers: as many logits a network gives."""
        return len(self.class_names)

    @property
    def task(self) -> Task:
        """What there is to predict: "classes", "labels" or "numbers"."""
        return self.train.task

    def _check_against_train(self, split_name: str, split: Split) -> None:
        if set(split.inputs) != set(self.train.inputs):
            raise ValueError(
                f"Expected `{split_name}` to have the modalities {sorted(self.train.inputs)} of `train`, "
                f"but got {sorted(split.inputs)}. Give every split the same modalities."
            )
        for modality, values in split.inputs.items():
            if values.dtype != self.train.inputs[modality].dtype:
                raise ValueError(
                    f"Expected `{modality}` of `{split_name}` to be {self.train.inputs[modality].dtype} "
                    f"as in `train`, but got {values.dtype}. Store it alike in every split."
                )
        if split.task != self.task or (self.task != "classes" and split.target.shape[1] != self.num_classes):
            raise ValueError(
                f"Expected `target` of `{split_name}` to be of the task {self.task} with {self.num_classes} of them, "
                f"but got {split.target.dtype} {tuple(split.target.shape)}. Give every split the same task."
            )
        if self.task != "classes":
            return
        low, high = int(split.target.min()), int(split.target.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"Expected `target` of `{split_name}` to be class indices in [0, {self.num_classes}), "
                f"but got {low if low < 0 else high}. Correct the label or give every class a name."
            )


def check_modalities(asked: Sequence[str], known: Collection[str]) -> None:
    """Raise ValueError unless each of those that are asked for is there, and asked for once."""
    if not asked or len(set(asked)) < len(asked) or not set(asked) <= set(known):
        apart = len(asked) == 1 and set(asked[0].split()) <= set(known)
        raise ValueError(
            f"Expected argument `modalities` to be among {', '.join(known)}, once each, but got "
            f"{', '.join(asked) or 'none'}. {'Separate them by commas.' if apart else 'Check the spelling.'}"
        )


def task_of(target: torch.Tensor) -> Task:
    """The task of a target, by its dtype."""
    return "labels" if target.dtype == torch.bool else "numbers" if target.is_floating_point() else "classes"


def _check_target(target: torch.Tensor) -> None:
    if not isinstance(target, torch.Tensor) or target.dtype not in (torch.int64, torch.bool, torch.float32):
        found = target.dtype if isinstance(target, torch.Tensor) else type(target).__name__
        raise TypeError(
            "Expected `target` to be an int64 tensor of class indices, a bool one of labels or a float32 one of "
            f"numbers, but got {found}. Convert it with .long(), .bool() or .float()."
        )
    shape = ("(N,)", 1) if target.dtype == torch.int64 else ("(N, K)", 2)
    if target.ndim != shape[1] or target.numel() == 0:
        raise ValueError(
            f"Expected `target` to be of shape {shape[0]} with at least one sample, but got {tuple(target.shape)}. "
            "Give one class index a sample, or a row of labels or numbers."
        )
    if target.is_floating_point() and not bool(torch.isfinite(target).all()):
        raise ValueError("Expected `target` to be finite, but got NaN or infinity. Remove these samples.")


def _check_name(modality: str) -> None:
    # They stand in tables and on terminals, which line breaks and escapes would break.
    printable = isinstance(modality, str) and modality.isprintable()
    if not printable or not modality or "." in modality or modality in _RESERVED:
        raise ValueError(
            "Expected `inputs` to name modalities by non-empty printable strings without dots, other than 'target', "
            f"but got {modality!r}. Rename the modality."
        )


def _check_input(modality: str, values: torch.Tensor, length: int) -> None:
    if not isinstance(values, torch.Tensor) or values.dtype not in (torch.float32, torch.int64, torch.uint8):
        found = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
        raise TypeError(
            f"Expected `{modality}` to be a float32 tensor, an int64 one for token ids, or a uint8 one for text in "
            f"UTF-8, but got {found}. Convert it with .float() or .long()."
        )
    if values.dtype == torch.uint8 and (values.ndim != 2 or values.shape[1] == 0):
        raise ValueError(
            f"Expected `{modality}` to be text (N, T) where it is uint8, but got shape {tuple(values.shape)}. Convert "
            "pictures with .float()."
        )
    if values.ndim == 0 or len(values) != length:
        raise ValueError(
            f"Expected `{modality}` to have {length} rows, one a label in `target`, "
            f"but got shape {tuple(values.shape)}. Give every sample one row and one label."
        )
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        finite = torch.isfinite(values).reshape(length, -1).all(dim=1)
        raise ValueError(
            f"Expected `{modality}` to be finite, but got NaN or infinity in {int((~finite).sum())} samples, "
            f"first in sample {int((~finite).nonzero()[0])}. Remove or replace these values."
        )
