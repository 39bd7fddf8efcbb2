"""UR-FUNNY: is the last sentence of a talk meant to be laughed at? Words, voice and face of 16,514 of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from agm.data.layouts.layout import Part, Sample
from agm.data.layouts.sequences import SequencePickle

__all__ = ["UrFunny"]


class UrFunny(SequencePickle):
    """MultiBench's humor.pkl: sequences of up to 50 steps, with zeros in front.

    As AGM and MultiBench do it: samples without a word are left out, -inf in the voice becomes 0, and each sequence is
    cut to where the words begin. `read` gives "vision" (50, 371), "audio" (50, 81) and "text" (50, 300) float32 with
    zeros at the end.
    """

    name = "ur-funny"
    title = "UR-FUNNY"
    source = "MultiBench's humor.pkl; github.com/ROC-HCI/UR-FUNNY, TED's content is CC BY-NC-ND"
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the set's own train, validation and test",
        "authors": "AGM's: tested on valid; test as dep",
    }
    parts: ClassVar[Mapping[str, Part]] = {
        "data": Part("the pickle of all splits", ("humor.pkl", "ur_funny.pkl", "urfunny/humor.pkl"))
    }

    def _label(self, value: float) -> tuple[int, str]:
        return (0 if value < 1 else 1), ""

    def _names(self) -> tuple[str, ...]:
        return ("not humorous", "humorous")

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        listed = self.listed()
        if scheme == "authors":
            return {"train": listed["train"], "test": listed.get("validation", []), "dep": listed["test"]}
        return listed
