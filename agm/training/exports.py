"""What is written of a comparison: CSV, Markdown, and the file that repeats it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agm.training.answers import rightness
from agm.training.compare import Comparison
from agm.training.config import COMPARE, Config, config_text, settings
from agm.training.printable import cell, printable
from agm.training.run_folder import write_rows
from agm.training.unimodal_runs import APART
from agm.training.writing import write_text

__all__ = [
    "COLUMNS",
    "command_line",
    "comparison_row",
    "difference_text",
    "interval",
    "is_share",
    "remark",
    "run_command",
    "spread",
    "title_of",
    "title_of_run",
    "write_csv",
    "write_markdown",
    "write_settings",
    "write_wide_markdown",
]

TIMES = ("step_seconds", "cost")

# Of a comparison in files; the value at each seed follows.
COLUMNS = ("metric", "method", "mean", "deviation", "difference", "low", "high", "verdict")


def comparison_row(c: Comparison) -> list[Any]:
    """What `COLUMNS` names; None where there is no such figure."""
    return [c.metric, c.method, c.mean, c.deviation, *(c.difference or [None] * 3), c.verdict]


def write_csv(path: Path, comparisons: Sequence[Comparison], first_seed: int) -> None:
    """One row a fusion, metric and method: its statistics, then its value at each seed."""
    seeds = [f"seed_{first_seed + number}" for number in range(len(comparisons[0].values))]
    rows = ([c.fusion, *comparison_row(c), *c.values] for c in comparisons)
    write_rows(path, ["fusion", *COLUMNS, *seeds], rows)


def write_markdown(path: Path, comparisons: Sequence[Comparison], command: str) -> None:
    """A table for a README, a row a figure and method, with the command that made it and what its figures are."""
    first, kind = cell(comparisons[0].method), shares(comparisons)
    lines = [
        f"| test split, {kind} in % | method | mean ± sd | difference to {first} [95 % interval] | |",
        "|---|---|---|---|---|",
    ]
    for c in comparisons:
        lines.append(f"| {cell(title_of(c.metric))} | {cell(c.method)} | {spread(c)} | {interval(c)} | {c.verdict} |")
    lines += ["", remark(comparisons), "", f"    {command}", ""]
    write_text(path, "\n".join(lines))


def write_wide_markdown(path: Path, comparisons: Sequence[Comparison], command: str) -> None:
    """A table a fusion, a row a method, a column a figure: mean ± sd, below it the difference to the first method."""
    lines = []
    for fusion in dict.fromkeys(c.fusion for c in comparisons):
        found = {(c.method, c.metric): c for c in comparisons if c.fusion == fusion}
        methods = list(dict.fromkeys(method for method, _ in found))
        metrics = list(dict.fromkeys(metric for _, metric in found))
        if fusion:
            lines += [f"**{fusion}**", ""]
        lines += [
            f"| test split, {shares(comparisons)} in % | {' | '.join(cell(title_of(metric)) for metric in metrics)} |",
            "|---" * (len(metrics) + 1) + "|",
        ]
        for method in methods:
            cells = [_cell(found[method, metric]) if (method, metric) in found else "" for metric in metrics]
            lines.append(f"| {cell(method)} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"Below each mean: the difference to {comparisons[0].method}, in bold where its interval leaves 0 out. "]
    lines += [remark(comparisons), "", f"    {command}", ""]
    write_text(path, "\n".join(lines))


def _cell(comparison: Comparison) -> str:
    difference = interval(comparison)
    if comparison.verdict in ("higher", "lower"):
        difference = f"**{difference}**"
    return f"{spread(comparison)}<br>{difference}" if difference else spread(comparison)


def shares(comparisons: Sequence[Comparison]) -> str:
    """What the figures in percent are: accuracies, or of numbers to be predicted the variance explained."""
    measure = rightness({comparison.metric for comparison in comparisons})
    return {"accuracy": "accuracies"}.get(measure, measure)


def title_of(metric: str) -> str:
    """accuracy -> joint, response_audio -> audio response, absent_audio -> joint without audio, ..."""
    named = {"accuracy": "joint", "step_seconds": "ms a step", "cost": "cost of a step", "mae": "mean absolute error"}
    named |= {
        "epochs": "epochs in all",
        "micro_f1": "micro-F1",
        "macro_f1": "macro-F1",
        "correlation": "correlation",
        "shapley_gap": "Shapley gap",
    }
    if metric in named:
        return named[metric]
    kind, _, name = metric.partition("_")
    if kind == "absent":
        return f"joint without {name}"
    return f"{name} { {'strength': 'competition strength'}.get(kind, kind) }"


def title_of_run(config: Config) -> str:
    """What was trained, in a line."""
    alpha = f", alpha {config.alpha:g}, {config.masked}" if config.method == "agm" else ""
    return f"{Path(config.dataset).stem}, {config.fusion} fusion, {config.method}{alpha}, seed {config.seed}"


def is_share(metric: str) -> bool:
    """Whether the figure is an accuracy, shown in percent."""
    return metric not in (*TIMES, "mae", "epochs") and not metric.startswith("strength_")


def _scale(metric: str) -> tuple[float, int]:
    """By which number a figure is multiplied where people read it, and its decimals."""
    if is_share(metric):
        return 100.0, 1
    if metric == "step_seconds":
        return 1000.0, 1
    return 1.0, {"cost": 2, "epochs": 0}.get(metric, 3)


def spread(comparison: Comparison) -> str:
    """Mean and standard deviation of the runs that did not diverge, and how many did; accuracies in percent."""
    if comparison.mean is None:
        return "diverged"
    scale, digits = _scale(comparison.metric)
    deviation = "" if comparison.deviation is None else f" ± {scale * comparison.deviation:.{digits}f}"
    diverged = f" ({comparison.diverged} diverged)" if comparison.diverged else ""
    return f"{scale * comparison.mean:.{digits}f}{deviation}{diverged}"


def interval(comparison: Comparison) -> str:
    """Paired difference and its interval; of accuracies in percentage points."""
    if comparison.difference is None:
        return ""
    return difference_text(comparison.difference, comparison.metric)


def difference_text(difference: tuple[float, float | None, float | None], metric: str) -> str:
    """A difference by a metric, (mean, low, high), and its interval where it has one."""
    scale, digits = _scale(metric)
    mean, low, high = difference
    text = f"{scale * mean:+.{digits}f}"
    if low is None or high is None:
        return text
    return f"{text} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"


EPOCHS = {"last": "last epoch", "best": "best epoch on the validation split"}  # by setting `choose`


def remark(comparisons: Sequence[Comparison]) -> str:
    """What the figures are, for below a table."""
    seeds = len(comparisons[0].values)
    epoch = EPOCHS[comparisons[0].choose]
    text = (
        f"{seeds} seed{'s' if seeds > 1 else ''}, {epoch}, test split. The difference is paired by seed with a "
        "t-interval. Each row stands for itself: among many rows, some leave 0 out by chance."
    )
    if any(c.diverged for c in comparisons):
        text += " A run that diverged has no figures; its seed is left out of the mean and the difference."
    if any(c.method == APART for c in comparisons):
        text += (
            " Competition strength: 0 where all that a modality could teach alone can be read from the fused features, "
            f"near 1 for nothing of it; {APART} are networks of one modality each, side by side: their accuracies, and "
            "the strength that is left without competition."
        )
    if len({c.mean for c in comparisons if c.metric == "epochs"}) > 1:
        text += " Epochs in all: passes over the training split, those for teachers or copies of a network among them."
    if any(c.metric in TIMES for c in comparisons):
        text += (
            f" The cost is the time of a step over {comparisons[0].method}'s, with what is done between epochs shared "
            "out: runs did not take turns, so it is only as good as the machine was quiet."
        )
    return text


def command_line(
    config: Config, methods: Sequence[str], seeds: int, fusions: Sequence[str] = (), strength: bool = False
) -> str:
    """The command of a comparison, with the options that differ from their defaults."""
    words = ["agm compare", "--methods", shlex.quote(",".join(methods)), "--seeds", str(seeds)]
    if len(fusions) > 1:
        words += ["--fusion", ",".join(fusions)]
    if strength:
        words += ["--strength"]
    replaced = ("method", "fusion") if len(fusions) > 1 else ("method",)
    return printable(" ".join([*words, *_given(config, replaced)]))


def run_command(config: Config) -> str:
    """The command of a run, with the options that differ from their defaults; the machine's own are left out."""
    words = ["agm train", *_given(config, ("device", "threads"))]
    for name, value in config.options.items():
        words += ["--option", shlex.quote(f"{name}={_toml(value)}")]
    return printable(" ".join(words))


def _given(config: Config, left_out: Sequence[str]) -> list[str]:
    words = []
    for spec in settings():
        value = getattr(config, spec.name)
        if spec.name not in left_out and value != spec.default:
            words += ["--" + spec.name.replace("_", "-"), "none" if value is None else shlex.quote(str(value))]
    return words


def _toml(value: object) -> str:
    """As `parse_value` reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


def write_settings(
    path: Path, config: Config, methods: Sequence[str], seeds: int, fusions: Sequence[str], strength: bool = False
) -> None:
    """The file from which `agm compare --config` repeats a comparison."""
    table = {"methods": list(methods), "fusion": list(fusions) or [config.fusion], "seeds": seeds, "strength": strength}
    text = config_text(config, "agm compare --config THIS_FILE", {COMPARE: table}, without=("method", "fusion"))
    write_text(path, text)
