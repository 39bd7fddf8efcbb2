"""A study as a section of a page: from results.csv and settings.csv, which `agm compare STUDY.toml` wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agm.training.compare import Comparison
from agm.training.errors import UserError
from agm.training.exports import interval, remark, spread
from agm.training.report.comparison_section import compared, comparison_grid, read_comparisons
from agm.training.report.sections import Cell, Figures, Grid
from agm.training.report.vector import Drawing
from agm.training.run_folder import read_table
from agm.training.study.figures import certain_methods
from agm.training.study.pictures import draw_ranks, ranks_height
from agm.training.study.ranks import Ranking, rank_methods
from agm.training.study.study_file import BASELINE

__all__ = ["StudySection", "TaskPart", "study_section"]

_LARGEST = 0.1  # difference of accuracies at which the colours end


@dataclass(frozen=True)
class TaskPart:
    """One task of a study.

    Args:
        anchor: its place in the page.
        name: of the task.
        table: its figures.
        dots: the same as figures.
        chosen: the settings that each method was given.
    """

    anchor: str
    name: str
    table: Grid
    dots: Figures
    chosen: Grid | None


@dataclass(frozen=True)
class StudySection:
    """What a page tells of a study; its template is `study.html`.

    Args:
        anchor: its place in the page.
        title: the folder's name.
        folder: as it was given.
        overview: a row a method, by its rank, and a column a task.
        ranks: a figure, where methods can be ranked.
        remark: what the figures are.
        tasks: each with its own table.
        comparisons: task -> as they were read.
    """

    anchor: str
    title: str
    folder: str
    overview: Grid
    ranks: Figures | None
    remark: str
    tasks: tuple[TaskPart, ...]
    comparisons: Mapping[str, tuple[Comparison, ...]]

    kind = "study"


def study_section(folder: Path, anchor: str, drawing: Drawing) -> StudySection:
    """Gather it.

    Args:
        folder: of `agm compare STUDY.toml`.
        anchor: its place in the page.
        drawing: of the page.

    Raises:
        UserError: the study is not finished, or its table does not read.
    """
    path = folder / "results.csv"
    if not path.exists():
        raise UserError(
            f"Expected the study in {str(folder)!r} to be finished, but got no results.csv there. Finish it with the "
            "same command, agm compare STUDY.toml: runs that are done are not repeated."
        )
    rows = read_table(path, lambda row: row["task"] is not None)
    tasks = {str(row["task"]): read_comparisons([r for r in rows if r["task"] == row["task"]], path) for row in rows}
    if not tasks:
        read_comparisons([], path)
    ranking = _ranking(tasks)
    anchors = {task: f"{anchor}-task-{place}" for place, task in enumerate(tasks, 1)}
    chosen = _chosen(folder / "settings.csv")
    return StudySection(
        anchor=anchor,
        title=folder.resolve().name,
        folder=str(folder),
        overview=_overview(tasks, anchors, ranking),
        ranks=_ranks(ranking, drawing),
        remark=remark(next(iter(tasks.values()))),
        tasks=tuple(
            TaskPart(anchors[task], task, comparison_grid(found, {}), compared(found, drawing), chosen.get(task))
            for task, found in tasks.items()
        ),
        comparisons={task: tuple(found) for task, found in tasks.items()},
    )


def _accuracies(found: Sequence[Comparison]) -> dict[str, Comparison]:
    return {c.method: c for c in found if c.metric == "accuracy"}


def _ranking(tasks: Mapping[str, Sequence[Comparison]]) -> Ranking | None:
    """Of the methods that every task has; a run that diverged counts as the task's worst."""
    found = {task: _accuracies(own) for task, own in tasks.items()}
    common = [label for label in next(iter(found.values())) if all(label in own for own in found.values())]
    scores = {label: [_mean(own[label]) for own in found.values()] for label in common}
    return rank_methods(scores) if BASELINE in scores and len(scores) > 1 else None


def _mean(found: Comparison) -> float:
    return math.nan if found.diverged or found.mean is None else found.mean


def _overview(tasks: Mapping[str, Sequence[Comparison]], anchors: Mapping[str, str], ranking: Ranking | None) -> Grid:
    found = {task: _accuracies(own) for task, own in tasks.items()}
    certain = {task: certain_methods(own) if BASELINE in own else set() for task, own in found.items()}
    ranks = {} if ranking is None else ranking.ranks
    labels = list(dict.fromkeys([*ranks, *(label for own in found.values() for label in own)]))
    rows: list[tuple[Cell | str, ...]] = []
    for label in labels:
        cells: list[Cell | str] = [label, f"{ranks[label]:.1f}" if label in ranks else ""]
        for task, own in found.items():
            cells.append(_cell(own[label], label in certain[task]) if label in own else "–")
        rows.append(tuple(cells))
    head: tuple[Cell | str, ...] = ("method", "mean rank", *(Cell((task,), link=anchors[task]) for task in tasks))
    note = (
        f"Test accuracy in %: mean ± standard deviation; below it the difference to {BASELINE}, paired by seed, with "
        "its 95 % t-interval. Bold: it remains after Holm's correction for all methods of the column. The colour is "
        f"the difference, full at {100 * _LARGEST:.0f} points."
    )
    return Grid(head, tuple(rows), note)


def _cell(found: Comparison, certain: bool) -> Cell:
    shade = None
    if found.difference is not None:
        shade = max(-1.0, min(1.0, found.difference[0] / _LARGEST))
    return Cell(tuple(line for line in (spread(found), interval(found)) if line), strong=certain, shade=shade)


def _ranks(ranking: Ranking | None, drawing: Drawing) -> Figures | None:
    if ranking is None or ranking.datasets < 2:
        return None
    drawn = drawing.panel(partial(draw_ranks, ranking), "mean ranks of the methods", 5.5, ranks_height(ranking))
    p = "" if math.isnan(ranking.p) else f" Friedman test: p = {ranking.p:.2g}."
    note = (
        f"Mean rank over {ranking.datasets} tasks, the best at the top. Methods whose bars do not meet are told apart "
        f"by the Nemenyi test at 5 %.{p}"
    )
    return Figures((), (drawn,), note, wide=True)


def _chosen(path: Path) -> dict[str, Grid]:
    if not path.exists():
        return {}
    found: dict[str, list[tuple[Cell | str, ...]]] = {}
    for row in read_table(path, lambda row: {"task", "method", "chosen", "epochs"} <= set(row)):
        epochs = "" if row["epochs"] is None else str(row["epochs"])
        found.setdefault(str(row["task"]), []).append((str(row["method"]), str(row["chosen"]), epochs))
    return {task: Grid(("method", "chosen settings", "epochs"), tuple(rows)) for task, rows in found.items()}
