"""`agm compare STUDY.toml`: a study of many methods on many datasets."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from agm.training.commands.as_json import comparison_values, terminal, write_json
from agm.training.commands.outcome import interrupted, require
from agm.training.console import Terminal
from agm.training.exports import interval, spread
from agm.training.study import StudyFigures, read_study, run_study
from agm.training.study.pictures import draw_study
from agm.training.study.tables import write_tables

__all__ = ["study_command"]


def study_command(
    study: str, only: tuple[str, ...], jobs: int, scheduler: str | None, out: str | None, as_json: bool
) -> None:
    """Run what is left of a study, and write its tables and pictures.

    Args:
        study: path of its file.
        only: cells, TASK or TASK:METHOD; all by default.
        jobs, scheduler: as of `run_study`.
        out: folder; runs/NAME by default.
        as_json: whether the figures are printed as JSON.
    """
    require("matplotlib", "scipy")
    console = terminal(as_json)
    asked = read_study(study).only(only)
    folder = Path(out) if out else Path("runs") / asked.name
    progress = _Progress(console)
    try:
        figures = run_study(asked, folder, jobs=jobs, scheduler=scheduler, finished=progress.finished)
    except KeyboardInterrupt:
        interrupted("Interrupted.", "the same command: finished runs are not repeated")
        return
    _show(console, figures, folder, f"agm compare {shlex.quote(study)}")
    if as_json:
        tasks = {task: [comparison_values(found) for found in figures.comparisons(task)] for task in figures.tasks}
        write_json({"ranks": figures.ranking().ranks, "tasks": tasks})


def _show(console: Terminal, figures: StudyFigures, folder: Path, command: str) -> None:
    write_tables(folder, figures, command)
    pictures = ", ".join(path.name for path in draw_study(folder, figures))
    console.print(ranking_table(figures))
    console.say(f"results.md, results.csv, settings.csv, {pictures}: {folder}")
    console.suggest([(f"agm report {shlex.quote(str(folder))}", "one page: tables, pictures, ranks")])


def ranking_table(figures: StudyFigures) -> Table:
    """Methods by their mean rank over the tasks, with accuracy and difference to the baseline for each task."""
    table = Table(box=box.SIMPLE_HEAD, caption="test accuracy, %: mean ± sd, paired difference to joint [95 %]")
    for name in ("method", "rank", *figures.tasks):
        table.add_column(Text(name), justify="left" if name == "method" else "right", overflow="fold")
    ranks = figures.ranking().ranks
    columns = [figures.compared(task, "accuracy") for task in figures.tasks]
    for label in figures.order():
        cells = []
        for found in columns:
            one = found.get(label)
            cells.append("" if one is None else f"{spread(one)}\n{interval(one)}".rstrip())
        table.add_row(Text(label), f"{ranks[label]:.1f}" if label in ranks else "", *map(Text, cells))
    return table


class _Progress:
    """A line a run, with the time that is left at the pace so far."""

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._began, self._before = time.monotonic(), -1

    def finished(self, row: Mapping[str, Any], done: int, total: int) -> None:
        if self._before < 0:
            self._before = done - 1  # of earlier calls
        pace = (time.monotonic() - self._began) / (done - self._before)
        left = pace * (total - done)
        found = row["figures"]
        accuracy = (found or {}).get("accuracy")
        figure = "diverged" if found is None else "timed" if accuracy is None else f"{100 * accuracy:.1f} %"
        self._console.say(
            f"{done}/{total}  {row['kind']}  {row['task']}  {row['variant']}  seed {row['seed']}  {figure}"
            f"  {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
