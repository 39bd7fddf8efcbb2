"""CMU-MOSEI, CMU-MOSI and MUStARD in the pickles of MulT and of MultiBench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from agm.data.layouts.choices import Choice, one_of
from agm.data.layouts.layout import Part
from agm.data.layouts.sequences import SequencePickle

__all__ = ["RULES", "SCORE", "Mosei", "Mosi", "Mustard", "sentiment_class", "sentiment_figures"]

RULES = {
    "binary": ("negative", "not negative"),
    "positive": ("not positive", "positive"),
    "nonzero": ("negative", "positive"),
    "seven": ("-3", "-2", "-1", "0", "1", "2", "3"),
}
SCORE = "score"  # not a class: the sentiment itself
_HELP = (
    "zero is positive (MulT, BalanceBenchmark), zero is negative (MultiBench), without zeros, rounded to -3..3, or the "
    "number itself"
)


def sentiment_class(value: float, rule: str) -> int:
    """Class of a sentiment in [-3, 3]; -1 for one that the rule leaves out.

    Args:
        value: the sentiment.
        rule: "binary": from 0 on, or below; "positive": above 0, or not; "nonzero": above or below 0, and zeros left
            out; "seven": rounded to the nearest (halves to even), at most 3 and at least -3.
    """
    if rule == "seven":
        return round(min(max(value, -3.0), 3.0)) + 3
    if rule == "nonzero" and value == 0:
        return -1
    return int(value > 0) if rule in ("positive", "nonzero") else int(value >= 0)


def sentiment_figures(guess: Tensor, target: Tensor) -> dict[str, float]:
    """What papers on CMU-MOSEI and CMU-MOSI report of predicted sentiments.

    Args:
        guess: (N,) or (N, 1) predictions.
        target: the same of sentiments in [-3, 3].

    Returns:
        "mae" and "correlation" (Pearson's); "accuracy_7", both rounded to -3..3; "accuracy_2" and "f1", whether from 0
        on or below; "accuracy_2_nonzero" and "f1_nonzero", whether above 0, of sentiments that are not 0. F1 is the
        mean over the two classes by how frequent they are. NaN where there is nothing to count.

    Example:
        >>> import torch
        >>> sentiment_figures(torch.tensor([2.6, -0.2, 0.4]), torch.tensor([3.0, -1.0, 0.0]))["accuracy_2"]
        1.0

    Raises:
        ValueError: they differ in number, or there are none.

    Source: the evaluation of MulT (Tsai et al., ACL 2019).
    """
    said, true = guess.detach().double().reshape(-1), target.detach().double().reshape(-1)
    if len(said) != len(true) or not len(true):
        raise ValueError(
            f"Expected arguments `guess` and `target` to hold one number a sample, but got {tuple(guess.shape)} and "
            f"{tuple(target.shape)}."
        )
    there = true != 0
    a, b = said - said.mean(), true - true.mean()
    return {
        "mae": float((said - true).abs().mean()),
        "correlation": float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()),
        "accuracy_7": float((said.clamp(-3, 3).round() == true.clamp(-3, 3).round()).double().mean()),
        **dict(zip(("accuracy_2", "f1"), _of_two(said >= 0, true >= 0), strict=True)),
        **dict(zip(("accuracy_2_nonzero", "f1_nonzero"), _of_two(said[there] > 0, true[there] > 0), strict=True)),
    }


def _of_two(said: Tensor, true: Tensor) -> tuple[float, float]:
    """Accuracy, and F1 of both classes weighed by how frequent they are."""
    f1 = 0.0
    for side in (True, False):
        hit = float(((said == side) & (true == side)).sum())
        wrong = float((said != true).sum())
        f1 += (2 * hit / (2 * hit + wrong) if hit else 0.0) * float((true == side).double().mean())
    return float((said == true).double().mean()), f1


class _Sentiment(SequencePickle):
    drops_silent = False
    options: ClassVar[Mapping[str, Choice]] = {
        "labels": one_of("binary", "positive", "nonzero", "seven", SCORE, help=_HELP),
        **SequencePickle.options,
        "align": one_of(
            "none", "text", "each", help="MulT's takes sequences as they are; MultiBench cuts (text, each)"
        ),
    }
    schemes: ClassVar[Mapping[str, str]] = {"clean": "the set's own train, validation and test", "authors": "the same"}

    def _label(self, value: float) -> tuple[int, str]:
        rule = self.chosen["labels"]
        return 0 if rule == SCORE else sentiment_class(value, rule), "a sentiment of 0"

    def _number(self, value: float) -> float | None:
        return value if self.chosen["labels"] == SCORE else None

    def _names(self) -> tuple[str, ...]:
        return RULES.get(self.chosen["labels"], ("sentiment",))


class Mosei(_Sentiment):
    """mosei_senti_data.pkl: vision (T, 35), audio (T, 74) and text (T, 300), T = 50, or 500 in the unaligned one."""

    name = "mosei"
    title = "CMU-MOSEI"
    source = "MulT's and MultiBench's pickles; research only (YouTube)"
    parts: ClassVar[Mapping[str, Part]] = {
        "data": Part(
            "the pickle of all splits",
            ("mosei_senti_data.pkl", "mosei_senti_data_noalign.pkl", "mosei_raw.pkl", "mosei_data.pkl"),
        )
    }


class Mosi(_Sentiment):
    """mosi_data.pkl: vision, audio and text; the numbers of features are the file's."""

    name = "mosi"
    title = "CMU-MOSI"
    source = "MulT's and MultiBench's pickles; research only (YouTube)"
    parts: ClassVar[Mapping[str, Part]] = {
        "data": Part("the pickle of all splits", ("mosi_data.pkl", "mosi_data_noalign.pkl", "mosi_raw.pkl")),
    }


class Mustard(SequencePickle):
    """MultiBench's sarcasm.pkl (MUStARD): is a line of a comedy meant as it is said?"""

    name = "mustard"
    title = "MUStARD"
    source = "MultiBench's sarcasm.pkl; research only"
    parts: ClassVar[Mapping[str, Part]] = {"data": Part("the pickle of all splits", ("sarcasm.pkl", "mustard.pkl"))}
    schemes: ClassVar[Mapping[str, str]] = {"clean": "the set's own train, validation and test", "authors": "the same"}

    def _label(self, value: float) -> tuple[int, str]:
        return (0 if value < 1 else 1), ""

    def _names(self) -> tuple[str, ...]:
        return ("not sarcastic", "sarcastic")
