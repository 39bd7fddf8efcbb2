"""A study as tables: results.md for people, results.csv and settings.csv for programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from agm.training.compare import Comparison
from agm.training.exports import COLUMNS, comparison_row, difference_text, interval, spread, title_of
from agm.training.printable import cell, printable
from agm.training.run_folder import write_rows
from agm.training.study.figures import StudyFigures
from agm.training.study.study_file import BASELINE
from agm.training.writing import write_text

__all__ = ["write_tables"]


def write_tables(folder: Path, figures: StudyFigures, command: str) -> None:
    """Write results.md, results.csv and settings.csv into `folder`.

    Args:
        folder: that of the study.
        figures: of the study.
        command: what runs it, to which `--only TASK:METHOD` is added for one cell.
    """
    lines = [*_overview(figures), "", *_remarks(figures, command)]
    lines += _pairs(figures)
    for task in figures.tasks:
        lines += ["", f"## {printable(task)}", "", *_alone(figures, task), *_task_table(figures, task)]
    write_text(folder / "results.md", "\n".join([*lines, ""]))
    seeds = [f"seed_{seed}" for seed in figures.study.seeds]
    rows = [[task, *comparison_row(c), *c.values] for task in figures.tasks for c in figures.comparisons(task)]
    write_rows(folder / "results.csv", ["task", *COLUMNS, *seeds], rows)
    chosen = [
        [task, label, variant.label, figures.epochs(task, label)]
        for task in figures.tasks
        for label, variant in figures.chosen[task].items()
    ]
    write_rows(folder / "settings.csv", ["task", "method", "chosen", "epochs"], chosen)


def _overview(figures: StudyFigures) -> list[str]:
    """A row a method, by rank where it has one: its accuracy on each task, and below it the difference to joint."""
    ranks = figures.ranking().ranks
    costs = {task: found for task in figures.tasks if (found := figures.costs(task))}
    head = ["method", *figures.tasks, "mean rank", *(f"cost, {task}" for task in costs)]
    lines = [_row(head), "|---" * len(head) + "|"]
    columns = {task: (figures.compared(task, "accuracy"), figures.certain(task)) for task in figures.tasks}
    for label in figures.order():
        cells = [_accuracy(columns[task][0].get(label), label in columns[task][1]) for task in figures.tasks]
        rank = f"{ranks[label]:.1f}" if label in ranks else ""
        lines.append(_row([label, *cells, rank, *(_cost(found.get(label)) for found in costs.values())]))
    return lines


def _accuracy(found: Comparison | None, certain: bool) -> str:
    if found is None:
        return "–"
    difference = interval(found)
    text = f"{spread(found)}<br>{difference}" if difference else spread(found)
    return f"**{text}**" if certain else text


def _cost(found: tuple[float, float | None, float | None] | None) -> str:
    if found is None:
        return ""
    mean, low, high = found
    return f"{mean:.2f}" if low is None or high is None else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _pairs(figures: StudyFigures) -> list[str]:
    """Of methods that are compared with each other: a row a pair, a column a task."""
    if not figures.study.pairs:
        return []
    head = ["pair", *figures.tasks, "all tasks"]
    lines = ["", "## Methods against each other", "", _row(head), "|---" * len(head) + "|"]
    for first, second in figures.study.pairs:
        found = figures.differences(first, second)
        cells = [difference_text(found[task], "accuracy") if task in found else "–" for task in (*figures.tasks, "")]
        lines.append(_row([f"{first} – {second}", *cells]))
    return [
        *lines,
        "",
        "Points of test accuracy, the first less the second, paired by seed, with 95 % t-intervals over the seeds; the "
        "last column is of the mean over the tasks.",
    ]


def _alone(figures: StudyFigures, task: str) -> list[str]:
    """What networks of one modality achieve, where there are any."""
    found = []
    for name, values in figures.alone(task).items():
        deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        found.append(f"{printable(name)} {100 * statistics.fmean(values):.1f}{deviation}")
    return [f"Networks of one modality, not tuned: {', '.join(found)}.", ""] if found else []


def _task_table(figures: StudyFigures, task: str) -> list[str]:
    """All other figures of a task: mean ± sd, below it the difference."""
    found: dict[tuple[str, str], Comparison] = {(c.method, c.metric): c for c in figures.comparisons(task)}
    metrics = [metric for metric in dict.fromkeys(metric for _, metric in found) if not metric.startswith("absent_")]
    head = ["method", "chosen settings", "epochs", *(title_of(metric) for metric in metrics)]
    lines = [_row(head), "|---" * len(head) + "|"]
    for label, variant in figures.chosen[task].items():
        cells = [_plain(found.get((label, metric))) for metric in metrics]
        settings = ", ".join(f"{name} {value}" for name, value in {**variant.settings, **variant.options}.items())
        lines.append(_row([label, settings, str(figures.epochs(task, label) or ""), *cells]))
    return lines


def _plain(found: Comparison | None) -> str:
    return _accuracy(found, False) if found is not None else ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell(text) for text in cells) + " |"


def _remarks(figures: StudyFigures, command: str) -> list[str]:
    study, ranking = figures.study, figures.ranking()
    seeds = f"{len(study.seeds)} seeds"
    text = [
        f"Test accuracy in %, mean ± standard deviation of {seeds}; below it the difference to {BASELINE}, paired by "
        "seed, with its 95 % t-interval. Bold: it remains after Holm's correction for all methods of the column. Last "
        f"epoch; the settings of every method are the best of {study.trials} on the validation split "
        f"(seed{'s' if len(study.tuning_seeds) > 1 else ''} {', '.join(map(str, study.tuning_seeds))}), "
        "and the test split was looked at once a run.",
    ]
    if math.isfinite(ranking.critical_difference):
        p = "" if math.isnan(ranking.p) else f"; Friedman test p = {ranking.p:.2g}"
        text += [
            "",
            f"Mean rank over {ranking.datasets} tasks of the {len(ranking.ranks)} methods that are defined for all: "
            f"ranks that differ by less than {ranking.critical_difference:.1f} cannot be told apart (Nemenyi, 5 %){p}.",
        ]
    if any(figures.costs(task) for task in figures.tasks):
        text += ["", f"Cost: time of the whole training over {BASELINE}'s, {study.cost_rounds} rounds in turns."]
    return [*text, "", f"    {command}", "", f"One cell alone: `{command} --only TASK:METHOD`."]
