"""Methods against each other: the same seeds for each, and what their paired differences allow to claim."""

from __future__ import annotations

import csv
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.methods import check_method
from agm.training.records import RunFolder
from agm.training.trainer import Observer, Result, check_settings, train

__all__ = [
    "CONFIDENCE",
    "Comparison",
    "command_line",
    "compare_methods",
    "interval",
    "mean_interval",
    "paired_comparisons",
    "remark",
    "run_name",
    "spread",
    "title_of",
    "write_csv",
    "write_markdown",
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One figure of one method over the seeds, and its paired difference to the first method.

    Args:
        metric: a column of metrics.csv, such as accuracy or response_audio.
        method: as given to `--method`.
        values: one a seed, shares from 0 to 1.
        difference: (mean, low, high) of value minus the first method's value at the same seed, with the paired
            t-interval; low and high are None for a single seed. None for the first method, and where the first
            method has no such figure.
    """

    metric: str
    method: str
    values: tuple[float, ...]
    difference: tuple[float, float | None, float | None] | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (N - 1); None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def verdict(self) -> str:
        """What the difference allows to say about these runs."""
        if self.difference is None:
            return ""
        _, low, high = self.difference
        if low is None or high is None:
            return "one seed: nothing can be claimed"
        if low > 0:
            return "higher"
        if high < 0:
            return "lower"
        return "no difference can be claimed"


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of independent values and its 95 % t-interval (None, None for a single value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    from scipy import stats  # type: ignore[import-untyped]

    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def paired_comparisons(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Comparison]:
    """Compare methods by their figures.

    Args:
        figures: method -> one mapping a seed, metric -> value; the seeds in the same order for every method.

    Returns:
        One `Comparison` for each metric and each method that has it, by metric.
    """
    first = next(iter(figures))
    metrics = dict.fromkeys(metric for runs in figures.values() for metric in runs[0])
    comparisons = []
    for metric in metrics:
        for method, runs in figures.items():
            if metric not in runs[0]:
                continue
            values = tuple(run[metric] for run in runs)
            difference = None
            if method != first and metric in figures[first][0]:
                baseline = [run[metric] for run in figures[first]]
                difference = mean_interval([a - b for a, b in zip(values, baseline, strict=True)])
            comparisons.append(Comparison(metric, method, values, difference))
    return comparisons


def run_name(method: str, seed: int) -> str:
    """Name of the folder of one run of a comparison."""
    return f"{method.replace(':', '-')}-seed{seed}"


def compare_methods(
    config: Config,
    methods: Sequence[str],
    seeds: int,
    folder: Path,
    observer: Callable[[str, int], Observer] = lambda method, seed: Observer(),
    finished: Callable[[Result], None] = lambda result: None,
) -> list[Comparison]:
    """Train every method with the seeds `config.seed`, `config.seed + 1`, ... and compare them on the test split.

    Every run has an ordinary run folder in `folder`: one that is finished is not repeated, one that was
    interrupted goes on.

    Args:
        config: the settings; method and seed are replaced.
        methods: two or more; the first one is the baseline.
        seeds: how many.
        folder: made if it does not exist.
        observer: (method, seed) -> who is told about that run.
        finished: called after each run.

    Raises:
        UserError: methods or settings that do not fit, also with the runs that are in `folder` already.
    """
    _check_request(methods, seeds)
    # Seed by seed, so that an interrupted comparison has all methods for the seeds that it has.
    requests = [
        (method, replace(config, method=method, seed=config.seed + number))
        for number in range(seeds)
        for method in methods
    ]
    for _, request in requests[: len(methods)]:
        check_settings(request)
    figures: dict[str, list[Mapping[str, float]]] = {method: [] for method in methods}
    seen = ""
    for method, request in requests:
        run = folder / run_name(method, request.seed)
        result = train(
            request,
            run,
            resume=RunFolder(run).holds_run(),
            observer=observer(method, request.seed),
        )
        if result.data != (seen := seen or result.data):
            raise UserError(
                f"Expected the data {config.dataset!r} to stay as they were at the first run, but their contents "
                "changed meanwhile. Compare again into another folder with --out."
            )
        finished(result)
        columns = result.evaluation.columns()
        figures[method].append({name: value for name, value in columns.items() if name != "loss"})
    return paired_comparisons(figures)


def _check_request(methods: Sequence[str], seeds: int) -> None:
    for method in methods:
        check_method(method)
    if len(methods) < 2 or len(set(methods)) != len(methods):
        raise UserError(
            f"Expected --methods to be two or more different methods, but got {', '.join(methods) or 'none'}. "
            "Use for example --methods joint,agm."
        )
    if seeds < 1:
        raise UserError(f"Expected --seeds to be an integer >= 1, but got {seeds}. Use for example --seeds 5.")


def write_csv(path: Path, comparisons: Sequence[Comparison], first_seed: int) -> None:
    """One row a metric and method: its statistics, then its value at each seed."""
    seeds = [f"seed_{first_seed + number}" for number in range(len(comparisons[0].values))]
    head = ["metric", "method", "mean", "deviation", "difference", "low", "high", "verdict", *seeds]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for c in comparisons:
            difference = c.difference or (None, None, None)
            row = [c.metric, c.method, c.mean, c.deviation, *difference, c.verdict, *c.values]
            writer.writerow(["" if value is None else value for value in row])


def write_markdown(path: Path, comparisons: Sequence[Comparison], command: str) -> None:
    """A table for a README, with the command that made it and what its figures are."""
    first = comparisons[0].method
    lines = [
        f"| test accuracy, % | method | mean ± sd | difference to {first} [95 % interval] | |",
        "|---|---|---|---|---|",
    ]
    for c in comparisons:
        lines.append(f"| {title_of(c.metric)} | {c.method} | {spread(c)} | {interval(c)} | {c.verdict} |")
    lines += ["", remark(len(comparisons[0].values)), "", f"    {command}", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def title_of(metric: str) -> str:
    """accuracy -> joint, response_audio -> audio response, absent_audio -> audio absent."""
    kind, _, name = metric.partition("_")
    return {"accuracy": "joint", "response": f"{name} response", "absent": f"{name} absent"}[kind]


def spread(comparison: Comparison) -> str:
    """Mean and standard deviation in percent."""
    deviation = "" if comparison.deviation is None else f" ± {100 * comparison.deviation:.1f}"
    return f"{100 * comparison.mean:.1f}{deviation}"


def interval(comparison: Comparison) -> str:
    """Paired difference and its interval in percentage points."""
    if comparison.difference is None:
        return ""
    mean, low, high = comparison.difference
    text = f"{100 * mean:+.1f}"
    return text if low is None or high is None else f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"


def remark(seeds: int) -> str:
    """What the figures are, for below a table."""
    return (
        f"{seeds} seed{'s' if seeds > 1 else ''}, last epoch, test split. The difference is paired by seed with a "
        "t-interval. Each row stands for itself: among many rows, some leave 0 out by chance."
    )


def command_line(config: Config, methods: Sequence[str], seeds: int) -> str:
    """The command of a comparison, with the options that differ from their defaults."""
    words = ["agm compare", "--methods", ",".join(methods), "--seeds", str(seeds)]
    for spec in fields(Config):
        value = getattr(config, spec.name)
        if spec.name != "method" and value != spec.default:
            words += ["--" + spec.name.replace("_", "-"), shlex.quote(str(value))]
    return " ".join(words)
