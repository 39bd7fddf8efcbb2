"""Which samples the modalities share evenly, and which one of them decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agm.data import Split
from agm.training.report.media import Medium, medium
from agm.training.report.predictions import Predictions

__all__ = ["Sample", "balanced_first", "shown_samples", "unbalanced_first"]


@dataclass(frozen=True)
class Sample:
    """One sample, for a page.

    Args:
        number: its place in the split, from 0.
        truth, answer: the class, the labels or the numbers, and what the network says.
        right: whether it is right; None of numbers.
        confidence: probability of the answer; None where there is none.
        modalities: (name, value or None, score of its response or None, answer of its response), one each.
        media: what the sample is, a modality each.
    """

    number: int
    truth: str
    answer: str
    right: bool | None
    confidence: float | None
    modalities: tuple[tuple[str, float | None, float | None, str], ...]
    media: tuple[Medium, ...]


def unbalanced_first(predictions: Predictions) -> list[int]:
    """Samples of two modalities or more, those that one modality decides most at the head.

    By the difference between the largest and the smallest of the modalities' values, where there are values
    (`agm.modality_values`); among equals, and for other tasks than one class a sample, by the difference of the scores.
    """
    values, gaps = _spreads(predictions)
    return sorted(_comparable(predictions), key=lambda n: (-values[n], -gaps[n], n))


def balanced_first(predictions: Predictions) -> list[int]:
    """The other way round; samples that the network is wrong about come last, for there is nothing to share."""
    values, gaps = _spreads(predictions)
    wrong = [False] * len(values)
    if predictions.task == "classes":
        wrong = (predictions.views[0].answers != predictions.target).tolist()
    return sorted(_comparable(predictions), key=lambda n: (wrong[n], values[n], gaps[n], n))


def _comparable(predictions: Predictions) -> list[int]:
    return [n for n, known in enumerate((~predictions.scores.isnan()).sum(1).tolist()) if known > 1]


def _spreads(predictions: Predictions) -> tuple[list[float], list[float]]:
    """Of values, 0 where there are none, and of scores."""
    gaps = _spread(predictions.scores)
    found = predictions.contributions
    if found is None or found.sample_values is None:
        return [0.0] * len(gaps), gaps
    return _spread(found.sample_values), gaps


def _spread(values: Tensor) -> list[float]:
    """(N, M) -> largest less smallest of a row, without NaN; 0 where all are."""
    high = values.nan_to_num(nan=-math.inf).amax(1)
    low = values.nan_to_num(nan=math.inf).amin(1)
    return (high - low).nan_to_num(0.0, 0.0, 0.0).clamp(min=0).tolist()


def shown_samples(
    numbers: Sequence[int], predictions: Predictions, split: Split, modalities: Sequence[str], names: Sequence[str]
) -> list[Sample]:
    """These samples of a split, on the CPU.

    Args:
        numbers: their places.
        predictions: of the split.
        split: that of `modalities` alone.
        modalities: those of the network.
        names: of the classes, labels or numbers.
    """
    return [_sample(number, predictions, split, modalities, names) for number in numbers]


def _sample(
    number: int, predictions: Predictions, split: Split, modalities: Sequence[str], names: Sequence[str]
) -> Sample:
    joint, found = predictions.views[0], predictions.contributions
    own = {view.modality: view.answers[number] for view in predictions.views if view.kind == "response"}
    told = []
    for place, name in enumerate(modalities):
        value = None if found is None or found.sample_values is None else _known(found.sample_values[number, place])
        score = _known(predictions.scores[number, place])
        told.append((name, value, score, "" if score is None or name not in own else _named(own[name], names)))
    right = None
    if predictions.task != "numbers":
        right = bool(torch.equal(joint.answers[number], predictions.target[number]))
    media = []
    for place, name in enumerate(modalities):
        present = split.present is None or bool(split.present[number, place])
        media.append(medium(name, split.inputs[name][number], present))
    return Sample(
        number=number,
        truth=_named(predictions.target[number], names),
        answer=_named(joint.answers[number], names),
        right=right,
        confidence=None if predictions.confidence is None else float(predictions.confidence[number]),
        modalities=tuple(told),
        media=tuple(media),
    )


def _known(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number


def _named(answer: Tensor, names: Sequence[str]) -> str:
    if answer.dtype == torch.int64:
        return names[int(answer)] if answer >= 0 else "no answer"
    if answer.dtype == torch.bool:
        return ", ".join(name for name, given in zip(names, answer.tolist(), strict=True) if given) or "none"
    return ", ".join(f"{name} {number:.3g}" for name, number in zip(names, answer.tolist(), strict=True))
