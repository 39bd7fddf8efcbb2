"""Methods against each other: the same seeds for each, and what their paired differences allow to claim."""

from __future__ import annotations

import math
import multiprocessing
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.records import RunFolder
from agm.training.trainer import Observer, Result, check_settings, train
from agm.training.variants import Variant, parse_variant

__all__ = [
    "CONFIDENCE",
    "Comparison",
    "Strength",
    "compare_methods",
    "mean_interval",
    "paired_comparisons",
    "run_name",
    "seconds_per_step",
]

Strength = Callable[[Result], Mapping[str, float]]  # a finished run -> modality -> its competition strength

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One figure of one method over the seeds, and its paired difference to the first method.

    Args:
        metric: a column of metrics.csv, such as accuracy or response_audio; strength_audio; step_seconds; or cost,
            the seconds of a step over those of the first method at the same seed.
        method: as given to `--methods`.
        values: one a seed; accuracies are shares from 0 to 1.
        difference: (mean, low, high) of value minus the first method's value at the same seed, with the paired
            t-interval; low and high are None for a single seed. None for the first method, and where the first
            method has no such figure.
        fusion: of the network, where several are compared.
    """

    metric: str
    method: str
    values: tuple[float, ...]
    difference: tuple[float, float | None, float | None] | None
    fusion: str = ""

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


def paired_comparisons(figures: Mapping[str, Sequence[Mapping[str, float]]], fusion: str = "") -> list[Comparison]:
    """Compare methods by their figures.

    Args:
        figures: method -> one mapping a seed, metric -> value; the seeds in the same order for every method.
        fusion: the network's, where several are compared.

    Returns:
        One `Comparison` for each metric and each method that has it, by metric.
    """
    first = next(iter(figures))
    metrics = dict.fromkeys(metric for runs in figures.values() for metric in runs[0])
    comparisons = []
    for metric in metrics:
        for method, runs in figures.items():
            if any(metric not in run for run in runs):
                continue
            values = tuple(run[metric] for run in runs)
            difference = None
            if method != first and all(metric in run for run in figures[first]):
                baseline = [run[metric] for run in figures[first]]
                difference = mean_interval([a - b for a, b in zip(values, baseline, strict=True)])
            comparisons.append(Comparison(metric, method, values, difference, fusion))
    return comparisons


def run_name(method: str, seed: int) -> str:
    """Name of the folder of one run of a comparison; different methods have different ones."""
    name = re.sub(r"[(,]", "-", method.replace(":", "-")).replace(")", "")
    return f"{re.sub(r'[^A-Za-z0-9._=+-]', '_', name)}-seed{seed}"


def seconds_per_step(result: Result) -> float | None:
    """Time of a step of a run: the median epoch's mean, and an even share of what was done between the epochs.

    Runs of different methods do not take turns, so it is only as good as the machine was quiet. None for a run that
    was recorded without times.
    """
    rows = result.history
    if not all(row.get("step_seconds") is not None for row in rows):
        return None
    between = math.fsum(row["between_seconds"] for row in rows)
    return float(statistics.median(row["step_seconds"] for row in rows)) + between / int(rows[-1]["step"])


@dataclass(frozen=True)
class _Request:
    """A run that a comparison asks for."""

    variant: Variant
    config: Config
    folder: Path


def compare_methods(
    config: Config,
    methods: Sequence[str],
    seeds: int,
    folder: Path,
    observer: Callable[[str, int], Observer] = lambda method, seed: Observer(),
    finished: Callable[[Result], None] = lambda result: None,
    *,
    fusions: Sequence[str] = (),
    jobs: int = 1,
    strength: Strength | None = None,
) -> list[Comparison]:
    """Train every method with the seeds `config.seed`, `config.seed + 1`, ... and compare them on the test split.

    Every run has an ordinary run folder in `folder`, or in a folder of the fusion's name there where several are
    compared: one that is finished is not repeated, one that was interrupted goes on.

    Args:
        config: the settings; method, seed and fusion are replaced.
        methods: two or more, each with settings of its own if wanted, as `parse_variant` reads them; the first one is
            the baseline.
        seeds: how many.
        folder: made if it does not exist.
        observer: (method, seed) -> who is told about that run; not told of its epochs where `jobs` > 1.
        finished: called after each run.
        fusions: names of fusions, each compared by itself; that of `config` by default.
        jobs: processes that train at the same time, on the CPU, with one thread each.
        strength: gives the competition strength of a run, for a column.

    Raises:
        UserError: methods or settings that do not fit, also with the runs that are in `folder` already.
    """
    _check_request(methods, seeds, jobs)
    variants = [parse_variant(method) for method in methods]
    names = [run_name(variant.label, 0) for variant in variants]
    if len(set(names)) != len(names):
        raise UserError(
            f"Expected --methods to be different methods, but got {', '.join(methods)}. Leave out what is twice there."
        )
    if jobs > 1:
        config = _for_jobs(config)
    several = len(fusions) > 1
    networks = list(dict.fromkeys(fusions)) or [config.fusion]
    # Seed by seed, so that an interrupted comparison has all methods for the seeds that it has.
    requests = [
        _request(replace(config, fusion=fusion), variant, number, folder / fusion if several else folder)
        for number in range(seeds)
        for fusion in networks
        for variant in variants
    ]
    for request in requests[: len(networks) * len(variants)]:
        check_settings(request.config)

    figures: dict[str, dict[str, list[Mapping[str, float]]]] = {
        fusion: {variant.label: [] for variant in variants} for fusion in networks
    }
    seen = ""
    with _trained_ahead(requests, jobs) as ahead:
        for request in requests:
            if request.folder in ahead:
                ahead[request.folder].result()
            label, run = request.variant.label, RunFolder(request.folder)
            watching = observer(label, request.config.seed)
            result = train(request.config, run.path, resume=run.holds_run(), observer=watching)
            if result.data != (seen := seen or result.data):
                raise UserError(
                    f"Expected the data {config.dataset!r} to stay as they were at the first run, but their contents "
                    "changed meanwhile. Compare again into another folder with --out."
                )
            finished(result)
            figures[request.config.fusion][label].append(_figures(result, strength))
    comparisons = []
    for fusion, found in figures.items():
        comparisons += paired_comparisons(_with_cost(found), fusion if several else "")
    return comparisons


def _request(base: Config, variant: Variant, number: int, folder: Path) -> _Request:
    config = variant.config(replace(base, seed=base.seed + number))
    return _Request(variant, config, folder / run_name(variant.label, config.seed))


def _figures(result: Result, strength: Strength | None) -> dict[str, float]:
    figures = {name: value for name, value in result.evaluation.columns().items() if name != "loss"}
    if strength is not None:
        figures |= {f"strength_{name}": value for name, value in strength(result).items()}
    if (seconds := seconds_per_step(result)) is not None:
        figures["step_seconds"] = seconds
    return figures


def _with_cost(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[Mapping[str, float]]]:
    """The figures, and the cost of a step over the first method's at the same seed."""
    first = next(iter(figures.values()))
    found: dict[str, list[Mapping[str, float]]] = {}
    for method, runs in figures.items():
        found[method] = []
        for run, baseline in zip(runs, first, strict=True):
            timed = "step_seconds" in run and "step_seconds" in baseline
            cost = {"cost": run["step_seconds"] / baseline["step_seconds"]} if timed else {}
            found[method].append({**run, **cost})
    return found


@contextmanager
def _trained_ahead(requests: Sequence[_Request], jobs: int) -> Iterator[dict[Path, Future[None]]]:
    """Folder -> the run in another process that will leave it finished."""
    if jobs == 1:
        yield {}
        return
    # A forked child would inherit the threads' locks of torch.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        unfinished = [request for request in requests if not RunFolder(request.folder).result.exists()]
        try:
            yield {r.folder: pool.submit(_train_quietly, r.config, r.folder) for r in unfinished}
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _train_quietly(config: Config, folder: Path) -> None:
    train(config, folder, resume=RunFolder(folder).holds_run())


def _for_jobs(config: Config) -> Config:
    if config.resolved().device != "cpu":
        raise UserError(
            f"Expected --jobs 1 on {config.resolved().device!r}, whose runs would share one device. "
            "Leave --jobs out, or use --device cpu."
        )
    return replace(config, device="cpu", threads=1)


def _check_request(methods: Sequence[str], seeds: int, jobs: int) -> None:
    for method in methods:
        parse_variant(method)
    if len(methods) < 2 or len(set(methods)) != len(methods):
        raise UserError(
            f"Expected --methods to be two or more different methods, but got {', '.join(methods) or 'none'}. "
            "Use for example --methods joint,agm."
        )
    if seeds < 1:
        raise UserError(f"Expected --seeds to be an integer >= 1, but got {seeds}. Use for example --seeds 5.")
    if jobs < 1:
        raise UserError(f"Expected --jobs to be an integer >= 1, but got {jobs}. Use for example --jobs 2.")
