"""Sets that say of each sample in which split it is, and of each field what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from agm.data.layouts.layout import Layout, Sample
from agm.data.layouts.pictures import IMAGENET, Scale
from agm.data.layouts.splits import completed

__all__ = ["OwnSplits"]


class OwnSplits(Layout):
    """A set with splits of its own, whose fields are found in the set."""

    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the set's own splits; where validation or test is missing, a tenth of train is held out",
        "authors": "the set's own splits",
    }

    def _take(self, kinds: Mapping[str, str]) -> None:
        """Takes fields as the modalities: name -> kind ("image", "sound", "array", "text")."""
        self.modalities = tuple(kinds)
        images = [name for name, kind in kinds.items() if kind == "image"]
        self.pictures: Mapping[str, Scale] = dict.fromkeys(images, IMAGENET)  # type: ignore[misc]

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        return completed(self.listed()) if scheme == "clean" else self.listed()
