"""How right the answers of a network are, by the task."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from agm.data.multimodal import Task, task_of

__all__ = ["FURTHER", "Answers", "further_figures", "rightness", "task_of_figures"]

# Figures of the joint logits beside accuracy and loss.
FURTHER: dict[Task, tuple[str, ...]] = {
    "classes": ("macro_f1",),
    "labels": ("micro_f1", "macro_f1"),
    "numbers": ("mae", "correlation"),
}


def task_of_figures(further: Collection[str]) -> Task:
    """The task that has these further figures."""
    return next(task for task, names in FURTHER.items() if set(names) == set(further))


def rightness(names: Collection[str]) -> str:
    """What the figure `accuracy` is called where people read it, by the names of the figures beside it."""
    return "variance explained" if "mae" in names else "accuracy"


class Answers:
    """Judges logits against the targets of one split.

    A sample's share of what is right: of classes 1 or 0, the answer being the largest logit; of labels the share of
    them that is right, a logit above 0 being a yes; of numbers 1 - e^2 / s^2, averaged over them, with the error e and
    the variance s^2 in the split, so that the mean over the split is the share of the variance explained (R^2), 0 for
    naming the mean every time. What is not finite is no answer.

    Args:
        target: of the split, as `agm.data.Split` has it.
    """

    def __init__(self, target: Tensor) -> None:
        self.task: Task = task_of(target)
        self._variance = target.double().var(0, correction=0).clamp(min=1e-12) if self.task == "numbers" else None

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """() float64, the sum over samples of the plain loss of the task: without weights, and squared of numbers."""
        logits = logits.double()
        if self.task == "classes":
            return F.cross_entropy(logits, target, reduction="sum")
        if self.task == "labels":
            return F.binary_cross_entropy_with_logits(logits, target.double(), reduction="none").mean(1).sum()
        return (logits - target).square().mean(1).sum()

    def right(self, guesses: Tensor, target: Tensor) -> Tensor:
        """(G, B, C) -> (G,) the sum of the samples' shares; int64 of classes, else float64."""
        if self.task == "classes":
            largest, predicted = guesses.max(-1)  # NaN is larger than all, and no answer
            return (predicted.eq(target) & ~largest.isnan()).sum(1)
        if self.task == "labels":
            return ((guesses > 0).eq(target) & ~guesses.isnan()).double().mean(-1).sum(1)
        assert self._variance is not None
        error = (guesses.double() - target).square() / self._variance
        return (1 - error).nan_to_num(0.0, 0.0, 0.0).mean(-1).sum(1)


def further_figures(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Of the joint logits (N, C) of a whole split: the figures that `FURTHER` names for the task.

    F1 of labels and classes, 2 TP / (2 TP + FP + FN): "micro_f1" of all labels together, "macro_f1" the mean over them,
    0 for one that neither is there nor is named. "mae" is the mean absolute error, "correlation" Pearson's, averaged
    over the numbers; 0 where one of the two sides does not vary.
    """
    task = task_of(target)
    if task == "classes":
        largest, predicted = logits.max(-1)
        answers = torch.where(largest.isnan(), -1, predicted)  # NaN is no answer
        classes = torch.arange(logits.shape[-1], device=target.device)
        named, there = answers.unsqueeze(1) == classes, target.unsqueeze(1) == classes
        return {"macro_f1": float(_f1(_counts(named, there)).mean())}
    if task == "labels":
        hit, extra, missed = _counts(logits > 0, target)
        return {
            "micro_f1": float(_f1([hit.sum(), extra.sum(), missed.sum()])),
            "macro_f1": float(_f1([hit, extra, missed]).mean()),
        }
    guess, truth = logits.double(), target.double()
    a, b = guess - guess.mean(0), truth - truth.mean(0)
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return {
        "mae": float((guess - truth).abs().mean()),
        "correlation": float(torch.where(scale > 0, (a * b).sum(0) / scale, 0.0).mean()),
    }


def _counts(named: Tensor, there: Tensor) -> list[Tensor]:
    """(N, L) bool each -> (L,) float64: right, too much, and missed."""
    return [count.sum(0).double() for count in (named & there, named & ~there, ~named & there)]


def _f1(counts: Sequence[Tensor]) -> Tensor:
    hit, extra, missed = counts
    return 2 * hit / (2 * hit + extra + missed).clamp(min=1)
