"""CMU-MOSEI, CMU-MOSI and MUStARD in the pickles of MulT and of MultiBench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from agm.data.layouts.choices import Choice, one_of
from agm.data.layouts.layout import Part
from agm.data.layouts.sequences import SequencePickle

__all__ = ["RULES", "Mosei", "Mosi", "Mustard", "sentiment_class"]

RULES = {
    "binary": ("negative", "not negative"),
    "positive": ("not positive", "positive"),
    "nonzero": ("negative", "positive"),
    "seven": ("-3", "-2", "-1", "0", "1", "2", "3"),
}
_HELP = "zero is positive (MulT, BalanceBenchmark), zero is negative (MultiBench), without zeros, rounded to -3..3"


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


class _Sentiment(SequencePickle):
    drops_silent = False
    options: ClassVar[Mapping[str, Choice]] = {
        "labels": one_of("binary", "positive", "nonzero", "seven", help=_HELP),
        **SequencePickle.options,
        "align": one_of(
            "none", "text", "each", help="MulT's takes sequences as they are; MultiBench cuts (text, each)"
        ),
    }
    schemes: ClassVar[Mapping[str, str]] = {"clean": "the set's own train, validation and test", "authors": "the same"}

    def _label(self, value: float) -> tuple[int, str]:
        return sentiment_class(value, self.chosen["labels"]), "a sentiment of 0"

    def _names(self) -> tuple[str, ...]:
        return RULES[self.chosen["labels"]]


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
