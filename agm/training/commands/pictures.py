"""The picture of a run."""

from __future__ import annotations

from agm.training import plots
from agm.training.exports import title_of_run
from agm.training.result import Result

__all__ = ["draw"]


def draw(result: Result) -> None:
    plots.draw_run(result.folder, title_of_run(result.config))
