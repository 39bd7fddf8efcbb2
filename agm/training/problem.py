"""What a network is to learn: its inputs, its task, the loss of that task and the score of a response in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agm.data import MultimodalData, Split
from agm.data.multimodal import Task
from agm.training.config import Config
from agm.training.errors import UserError

__all__ = ["BYTES", "Problem"]

BYTES = 256  # values of the bytes that text in UTF-8 is made of

_LOSSES: dict[Task, tuple[str, ...]] = {"classes": (), "labels": (), "numbers": ("squared", "absolute")}


@dataclass(frozen=True)
class Problem:
    """What follows from the data, and not from the method.

    Args:
        task: a class a sample, any number of labels, or numbers.
        vocabularies: modality -> numbers that its samples are made of, for text and token ids.
        criterion: (logits, target) -> loss ().
        score: what a mono-modal response is scored by, as `agm.AGM` takes it.
        complete: whether every sample has every modality.
    """

    task: Task = "classes"
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    score: str = "cross_entropy"
    complete: bool = True

    @classmethod
    def of(cls, data: MultimodalData, config: Config) -> Problem:
        """What `config` has to learn from `data`, whose training split is what is trained on.

        Raises:
            UserError: a setting that the task does not have.
        """
        vocabularies = {name: _vocabulary(data, name) for name in data.modalities}
        known = {name: size for name, size in vocabularies.items() if size is not None}
        if data.task != "numbers" and config.error != "squared":
            raise UserError(
                f"Expected setting `error` with data whose target are numbers, but got it with {data.task}. "
                "Leave --error out."
            )
        if data.task == "numbers":
            if config.class_weights != "none":
                raise UserError(
                    "Expected setting `class_weights` with data whose target are classes or labels, but got it with "
                    "numbers. Leave --class-weights out."
                )
            squared = config.error == "squared"
            criterion = F.mse_loss if squared else F.l1_loss
            return cls("numbers", known, criterion, "squared_error" if squared else "absolute_error", data.complete)
        weights = None
        if config.class_weights == "balanced":
            weights = _balanced(data.train, data.num_classes).to(torch.device(config.resolved().device))
        if data.task == "labels":
            return cls("labels", known, _Binary(weights), "binary_cross_entropy", data.complete)
        loss = F.cross_entropy if weights is None else _Weighted(weights)
        return cls("classes", known, loss, "cross_entropy", data.complete)


@dataclass(frozen=True)
class _Weighted:
    """Cross-entropy in which each class has a weight; the mean is by weights."""

    weights: Tensor  # (C,)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, weight=self.weights.to(logits.dtype))


@dataclass(frozen=True)
class _Binary:
    """Mean binary cross-entropy of all labels; those that a sample has count by their weights."""

    weights: Tensor | None  # (L,)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), pos_weight=weights)


def _balanced(train: Split, classes: int) -> Tensor:
    """N / (C n_c) a class, or (N - n_l) / n_l a label, n being what the training split has; 0 where it has none."""
    if train.task == "labels":
        count = train.target.sum(0).float()
        return torch.where(count > 0, (len(train) - count) / count, 0.0)
    count = torch.bincount(train.target, minlength=classes).float()
    return torch.where(count > 0, len(train) / (classes * count), 0.0)


def _vocabulary(data: MultimodalData, name: str) -> int | None:
    """How many numbers the samples of a modality are made of; None where they are quantities."""
    values: Any = data.train.inputs[name]
    if values.is_floating_point():
        return None
    if values.dtype == torch.uint8:
        return BYTES
    if values.ndim != 2:
        raise UserError(
            f"Expected token ids in {name!r} to be of shape (N, T), one row a sample, but got {tuple(values.shape)}. "
            "Store quantities as floating-point numbers."
        )
    low, high = (
        min(int(split.inputs[name].min()) for split in data.splits.values()),
        max(int(split.inputs[name].max()) for split in data.splits.values()),
    )
    if low < 0 or high >= 2**24:
        raise UserError(
            f"Expected token ids in {name!r} to be from 0 (padding) to {2**24 - 1}, "
            f"but got {low if low < 0 else high}. Number the tokens from 1; if these are quantities, store them as "
            "floating-point numbers."
        )
    return max(high + 1, 2)
