"""Which classes are taken for which others, by each view of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agm.training.report.media import png_uri
from agm.training.report.predictions import Predictions, View

__all__ = ["Confusion", "LabelCounts", "confusion_matrix", "confusions", "label_counts", "title_of_view"]

SHOWN = 20  # classes up to which the whole table can be read
PAIRS = 15  # most frequent mistakes that are listed where it cannot


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix, for a page.

    Args:
        title: of the view.
        kind: of the view.
        modality: of the view.
        right, samples: how many of how many.
        rows: (class, samples of it, [(how many, their share of the class)]), a column a class that was named; empty
            where there are too many classes.
        unanswered: how many samples have no answer.
        pairs: (class, taken for, how many), the most frequent mistakes, where there are too many classes.
        picture: the matrix as a data URI, there too.
    """

    title: str
    kind: str
    modality: str
    right: int
    samples: int
    rows: tuple[tuple[str, int, tuple[tuple[int, float], ...]], ...]
    unanswered: int
    pairs: tuple[tuple[str, str, int], ...]
    picture: str


@dataclass(frozen=True)
class LabelCounts:
    """Yes and no of each label, by one view.

    Args:
        title: of the view.
        rows: (label, rightly yes, wrongly yes, wrongly no, rightly no).
    """

    title: str
    rows: tuple[tuple[str, int, int, int, int], ...]


def title_of_view(view: View) -> str:
    if view.kind == "joint":
        return "joint"
    return f"{view.modality}: its response" if view.kind == "response" else f"{view.modality} alone, all others absent"


def confusion_matrix(target: Tensor, answers: Tensor, classes: int) -> Tensor:
    """(C, C) int64: how many samples of the row's class are taken for the column's; no answer is none of them.

    >>> confusion_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, -1]), 2).tolist()
    [[1, 1], [0, 1]]

    Args:
        target: (N,) int64 classes.
        answers: (N,) int64, -1 for none.
        classes: C.
    """
    given = answers >= 0
    pairs = target[given] * classes + answers[given]
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def confusions(predictions: Predictions, names: Sequence[str]) -> list[Confusion]:
    """One of each view, in their order.

    Args:
        predictions: of a task of one class a sample.
        names: of the classes.
    """
    return [_confusion(view, predictions.target, names) for view in predictions.views]


def _confusion(view: View, target: Tensor, names: Sequence[str]) -> Confusion:
    own = target[view.has]
    matrix = confusion_matrix(own, view.answers[view.has], len(names))
    of_class = torch.bincount(own, minlength=len(names)).tolist()
    few = len(names) <= SHOWN
    rows = []
    for name, total, row in zip(names, of_class, matrix.tolist(), strict=True):
        rows.append((name, total, tuple((count, count / max(total, 1)) for count in row)))
    wrong = matrix.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist()
    pairs = [(names[p // len(names)], names[p % len(names)], int(wrong.flatten()[p])) for p in order]
    return Confusion(
        title=title_of_view(view),
        kind=view.kind,
        modality=view.modality,
        right=int(matrix.diagonal().sum()),
        samples=len(own),
        rows=tuple(rows) if few else (),
        unanswered=len(own) - int(matrix.sum()),
        pairs=() if few else tuple(pair for pair in pairs if pair[2]),
        picture="" if few else _picture(matrix, of_class),
    )


def _picture(matrix: Tensor, of_class: Sequence[int]) -> str:
    """A dot a pair of classes, the less transparent the larger its share of the row."""
    share = (matrix.double() / torch.tensor(of_class).clamp(min=1).unsqueeze(1)).numpy()
    pixels = np.empty((*share.shape, 4))
    pixels[..., :3] = (0.34, 0.55, 0.85)
    pixels[..., 3] = share**0.5
    return png_uri(pixels)


def label_counts(predictions: Predictions, names: Sequence[str]) -> list[LabelCounts]:
    """One of each view, in their order.

    Args:
        predictions: of a task of labels.
        names: of the labels.
    """
    found = []
    for view in predictions.views:
        truth, said = predictions.target[view.has], view.answers[view.has]
        counts = [(said & truth), (said & ~truth), (~said & truth), (~said & ~truth)]
        columns = [count.sum(0).tolist() for count in counts]
        found.append(LabelCounts(title_of_view(view), tuple(zip(names, *columns, strict=True))))
    return found
