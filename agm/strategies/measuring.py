"""What a network and each of its modalities do on a split, between epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agm.distributed import summed
from agm.strategies.parts import Parts, evaluation
from agm.strategies.taken import IGNORED, is_dense, positions

__all__ = ["Batches", "Measured", "by_number", "macro_f1", "measure", "numbered"]

Batches = Iterable[tuple[Mapping[str, Any], Tensor]]  # (inputs by modality, target), as often as it is iterated


def numbered(batches: Iterable[Any]) -> Iterator[tuple[Mapping[str, Any], Tensor, Tensor]]:
    """Batches that have the numbers of their samples: (inputs, target, index (B,)).

    Raises:
        ValueError: they have none.
    """
    for batch in batches:
        if len(batch) != 3:
            raise ValueError(
                f"Expected the train split in batches of (inputs, target, index), but got {len(batch)} items: this "
                "strategy tells samples apart. Give the numbers 0 ... N - 1 of the samples along."
            )
        yield batch


def by_number(batches: Iterable[Any], value: Callable[[Mapping[str, Any], Tensor], Tensor]) -> Tensor:
    """(N, ...) values of all samples of a split, by their numbers.

    Args:
        batches: of (inputs, target, index), see `numbered`.
        value: (inputs, target) -> (B, ...).

    Raises:
        ValueError: no numbers, or others than 0 ... N - 1 once each.
    """
    values, numbers = [], []
    for inputs, target, index in numbered(batches):
        values.append(value(inputs, target))
        numbers.append(index)
    order = torch.cat(numbers)
    in_order, places = order.sort()
    if not torch.equal(in_order, torch.arange(len(order), device=order.device)):
        raise ValueError(
            f"Expected the train split to hold every sample 0 ... N - 1 once, but got {len(order)} numbers with gaps "
            "or repetitions. Do not drop the last batch."
        )
    return torch.cat(values)[places]


@dataclass(frozen=True)
class Measured:
    """Figures of a split; losses are mean cross-entropies, accuracies shares from 0 to 1.

    Args:
        loss, accuracy: of the joint logits.
        losses, accuracies: modality -> of its logits alone (see `Parts.unimodal`).
    """

    loss: float
    accuracy: float
    losses: dict[str, float]
    accuracies: dict[str, float]


@torch.no_grad()
def measure(parts: Parts, batches: Batches) -> Measured:
    """Measure in eval mode; the modes are as before afterwards. Reads from the device once.

    Where processes train together the figures are of what all of them were given: each its share of the split, however
    many batches that has, or each the whole split.

    Raises:
        ValueError: there is no sample.
    """
    names, totals = parts.modalities, None
    modules = [parts.network, *parts.heads.values()]
    for inputs, target in batches:
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(evaluation(module))
            features, joint = parts.run(inputs)
            alone = parts.unimodal(inputs, features)
        flat = target.flatten() if is_dense(target) else target
        rows = []
        for logits in (positions(one, target) for one in (joint, *(alone[name] for name in names))):
            hits = logits.argmax(-1).eq(flat).sum().double()
            rows.append(torch.stack([F.cross_entropy(logits.double(), flat, reduction="sum"), hits]))
        figures = torch.cat([torch.stack(rows), (flat != IGNORED).sum().double().expand(1, 2)])
        totals = figures if totals is None else totals + figures
    if parts.group is not None:
        device = next(parts.network.parameters()).device
        none = torch.zeros(len(names) + 2, 2, dtype=torch.float64, device=device)
        totals = summed(none if totals is None else totals, parts.group)
    found = [] if totals is None else totals.tolist()
    if not found or not found[-1][0]:
        raise ValueError("Expected batches of one sample or more, but got none.")
    samples = found[-1][0]
    (loss, accuracy), *others = [[value / samples for value in row] for row in found[:-1]]
    return Measured(
        loss=loss,
        accuracy=accuracy,
        losses={name: row[0] for name, row in zip(names, others, strict=True)},
        accuracies={name: row[1] for name, row in zip(names, others, strict=True)},
    )


@torch.no_grad()
def macro_f1(predict: Callable[[Any], Tensor], batches: Iterable[Any]) -> float:
    """Mean over the classes of 2 TP / (2 TP + FP + FN); classes that occur nowhere are left out.

    Args:
        predict: inputs -> logits (B, C), in eval mode.
        batches: of (inputs, target, ...).

    Raises:
        ValueError: there is no sample.
    """
    counts: Tensor | None = None  # (C, C) by target and prediction
    for inputs, target, *_ in batches:
        logits = predict(inputs)
        classes = logits.shape[-1]
        found = torch.bincount(target * classes + logits.argmax(-1), minlength=classes**2).view(classes, classes)
        counts = found if counts is None else counts + found
    if counts is None or not counts.sum():
        raise ValueError("Expected batches of one sample or more, but got none.")
    total = (counts.sum(0) + counts.sum(1)).double()
    occurs = total > 0
    return float((2 * counts.diagonal()[occurs] / total[occurs]).mean())
