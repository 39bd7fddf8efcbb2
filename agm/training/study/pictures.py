"""A study as pictures: the ranks of the methods, and their differences to the baseline on every task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agm.training.drawing import COLOURS, JOINT, grid_of, set_title, styled, write_figure
from agm.training.study.figures import StudyFigures
from agm.training.study.ranks import Ranking
from agm.training.study.study_file import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["differences_figure", "draw_ranks", "draw_study", "ranks_figure", "ranks_height"]

_LARGEST = 10.0  # points at which the colours end


def draw_study(folder: Path, figures: StudyFigures) -> list[Path]:
    """Write differences.png, and ranks.png where there are two tasks or more; returns their paths."""
    paths = [folder / "differences.png"]
    write_figure(differences_figure(figures), paths[0])
    if len(figures.ranking().ranks) > 1 and figures.ranking().datasets > 1:
        paths.append(folder / "ranks.png")
        write_figure(ranks_figure(figures), paths[1])
    return paths


@styled
def ranks_figure(figures: StudyFigures) -> Figure:
    """Mean rank of each method, the best at the top, with the critical difference as a bar around each.

    Two methods whose bars do not meet are told apart by the Nemenyi test: a bar reaches half the difference each way.
    """
    ranking = figures.ranking()
    figure, grid = grid_of(1, 1, 6.5, ranks_height(ranking))
    draw_ranks(ranking, grid[0][0])
    p = "" if math.isnan(ranking.p) else f", Friedman p = {ranking.p:.2g}"
    set_title(figure, f"{figures.study.name}: ranks by test accuracy{p}")
    return figure


def ranks_height(ranking: Ranking) -> float:
    """Inches that the picture of so many methods is high."""
    return 1.2 + 0.22 * len(ranking.ranks)


def draw_ranks(ranking: Ranking, axes: Axes) -> None:
    """What `ranks_figure` shows."""
    labels = list(ranking.ranks)
    half = ranking.critical_difference / 2
    for place, label in enumerate(labels):
        colour = JOINT if label == BASELINE else COLOURS[1] if label.startswith("agm") else COLOURS[0]
        rank = ranking.ranks[label]
        axes.plot([rank - half, rank + half], [place, place], color=colour, alpha=0.35, linewidth=4)
        axes.plot([rank], [place], "o", color=colour, markersize=5)
    joint = ranking.ranks[BASELINE]
    axes.axvspan(joint - half, joint + half, color=JOINT, alpha=0.05, linewidth=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(
        f"mean rank over {ranking.datasets} tasks; bars: critical difference {ranking.critical_difference:.1f}"
    )


@styled
def differences_figure(figures: StudyFigures) -> Figure:
    """Points of accuracy over joint training: a row a method, a column a task; bold where Holm's correction leaves it.

    The best mean rank is at the top; below those that are ranked are the methods that are not defined for every task.
    """
    order, tasks = figures.order(), figures.tasks
    values = np.full((len(order), len(tasks)), np.nan)
    columns = [(figures.compared(task, "accuracy"), figures.certain(task)) for task in tasks]
    for column, (found, _) in enumerate(columns):
        for row, label in enumerate(order):
            if label in found and (difference := found[label].difference) is not None:
                values[row, column] = 100 * difference[0]
    figure, grid = grid_of(1, 1, 2.6 + 1.0 * len(tasks), 1.4 + 0.24 * len(order))
    axes = grid[0][0]
    axes.imshow(values, cmap="RdBu", vmin=-_LARGEST, vmax=_LARGEST, aspect="auto")
    for column, (found, certain) in enumerate(columns):
        for row, label in enumerate(order):
            value = values[row, column]
            text = f"{value:+.1f}" if math.isfinite(value) else _missing(label, found)
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                size=8,
                weight="bold" if label in certain else "normal",
                color="white" if abs(value) > 0.7 * _LARGEST else "black",
            )
    axes.set_xticks(range(len(tasks)), [task.replace("-", "\n", 1) for task in tasks])
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(order)), order)
    axes.grid(visible=False)
    set_title(figure, f"{figures.study.name}: points of test accuracy over {BASELINE} training")
    return figure


def _missing(label: str, found: object) -> str:
    if label == BASELINE:
        return "0"
    return "diverged" if isinstance(found, dict) and label in found else "–"
