"""The picture of a run."""

from __future__ import annotations

from pathlib import Path

from agm.training import plots
from agm.training.config import Config
from agm.training.result import Result

__all__ = ["draw", "title_of"]


def draw(result: Result) -> None:
    plots.draw_run(result.folder, title_of(result.config))


def title_of(config: Config) -> str:
    alpha = f", alpha {config.alpha:g}, {config.masked}" if config.method == "agm" else ""
    return f"{Path(config.dataset).stem}, {config.fusion} fusion, {config.method}{alpha}, seed {config.seed}"
