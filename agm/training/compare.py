"""Methods against each other: the same seeds for each, and what their paired differences allow to claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from agm.data import MultimodalData
from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.observer import Observer
from agm.training.result import Result
from agm.training.run_folder import RunFolder, run_name
from agm.training.train_or_none import train_or_none
from agm.training.trainer import check_settings
from agm.training.unimodal_runs import APART, UnimodalRuns, check_fitting_split, with_fitting_split
from agm.training.variants import Variant, parse_variant
from agm.training.workers import trained_ahead, wait_for
from agm.training.writing import locked

__all__ = [
    "CONFIDENCE",
    "Comparison",
    "compare_methods",
    "mean_interval",
    "paired_comparisons",
    "seconds_per_step",
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One figure of one method over the seeds, and its paired difference to the first method.

    Args:
        metric: a column of metrics.csv, such as accuracy or response_audio; strength_audio; epochs, the passes over
            the training split in all, those for teachers or copies among them; step_seconds; or cost,
            the seconds of a step over those of the first method at the same seed.
        method: as given to `--methods`.
        values: one a seed, NaN where that run diverged; accuracies are shares from 0 to 1.
        difference: (mean, low, high) of value minus the first method's value at the same seed, with the paired
            t-interval, over the seeds at which neither diverged; low and high are None for a single one. None for the
            first method, and where there is no such seed.
        fusion: of the network, where several are compared.
        choose: which weights the values are of, as setting `choose` has it.
    """

    metric: str
    method: str
    values: tuple[float, ...]
    difference: tuple[float, float | None, float | None] | None
    fusion: str = ""
    choose: str = "last"

    @property
    def found(self) -> tuple[float, ...]:
        """The values of the runs that did not diverge."""
        return tuple(value for value in self.values if not math.isnan(value))

    @property
    def diverged(self) -> int:
        """How many runs did."""
        return len(self.values) - len(self.found)

    @property
    def mean(self) -> float | None:
        """Of the runs that did not diverge; None where all did."""
        return statistics.fmean(self.found) if self.found else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds that did not diverge (N - 1); None for a single one."""
        return statistics.stdev(self.found) if len(self.found) > 1 else None

    @property
    def verdict(self) -> str:
        """What the difference allows to say about these runs."""
        if self.mean is None:
            return "diverged"
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


def paired_comparisons(
    figures: Mapping[str, Sequence[Mapping[str, float] | None]], fusion: str = "", choose: str = "last"
) -> list[Comparison]:
    """Compare methods by their figures.

    Args:
        figures: method -> one mapping a seed, metric -> value, or None for a run that diverged; the seeds in the same
            order for every method.
        fusion: the network's, where several are compared.
        choose: which weights the figures are of, as setting `choose` has it.

    Returns:
        One `Comparison` for each metric and each method that has it, by metric.
    """
    first = next(iter(figures))
    metrics = dict.fromkeys(metric for runs in figures.values() for run in runs if run is not None for metric in run)
    comparisons = []
    for metric in metrics:
        for method, runs in figures.items():
            if any(run is not None and metric not in run for run in runs):
                continue
            values = tuple(math.nan if run is None else run[metric] for run in runs)
            difference = None
            if method != first:
                baseline = [math.nan if run is None else run.get(metric, math.nan) for run in figures[first]]
                pairs = [a - b for a, b in zip(values, baseline, strict=True) if not math.isnan(a - b)]
                difference = mean_interval(pairs) if pairs else None
            comparisons.append(Comparison(metric, method, values, difference, fusion, choose))
    return comparisons


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

    label: str
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
    strength: bool = False,
) -> list[Comparison]:
    """Train every method with the seeds `config.seed`, `config.seed + 1`, ... and compare them on the test split.

    Every run has an ordinary run folder in `folder`, or in a folder of the fusion's name there where several are
    compared: one that is finished is not repeated, one that was interrupted goes on. A run that diverges has no
    figures, and the others go on.

    Args:
        config: the settings; method, seed and fusion are replaced.
        methods: two or more, each with settings of its own if wanted, as `parse_variant` reads them; the first one is
            the baseline.
        seeds: how many.
        folder: made if it does not exist.
        observer: (method, seed) -> who is told about that run; not told of its epochs where `jobs` > 1.
        finished: called after each run that did not diverge.
        fusions: names of fusions, each compared by itself; that of `config` by default.
        jobs: processes that train at the same time, on the CPU, with one thread each.
        strength: also measure the competition strength of every run. It is fitted on one validation split for all
            seeds, the data's own or a share that `config.validation` holds out of all trainings; its concepts, and the
            networks that are called "apart" in the place of a method, are networks of one modality each, of these
            seeds and one more (`agm.training.unimodal_runs`).

    Raises:
        UserError: methods or settings that do not fit, also with the runs that are in `folder` already; a strength
            that cannot be measured, also since a network of one modality diverged.
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
    # A name and its alias are one fusion.
    bases = list(dict.fromkeys(replace(config, fusion=fusion).fusion for fusion in fusions)) or [config.fusion]
    for fusion in bases:
        for variant in variants:
            check_settings(variant.config(replace(config, fusion=fusion)))
    if strength:
        check_fitting_split(config)
    several = len(bases) > 1
    with locked(folder):
        data = None
        if strength:
            config, data = with_fitting_split(config, folder)
        numbers = range(config.seed, config.seed + seeds)
        sessions = {
            fusion: _Session(replace(config, fusion=fusion), variants, folder / fusion if several else folder, data)
            for fusion in bases
        }
        # Seed by seed, so that an interrupted comparison has all methods for the seeds that it has.
        requests = [request for seed in numbers for session in sessions.values() for request in session.requests(seed)]
        unfinished = {r.folder: r.config for r in requests if not RunFolder(r.folder).result.exists()}
        with trained_ahead([(config, folder) for folder, config in unfinished.items()], jobs) as ahead:
            runs = _Runs(ahead, observer, finished)
            for seed in numbers:
                for session in sessions.values():
                    session.compare(seed, runs)
        comparisons = []
        for fusion, session in sessions.items():
            comparisons += paired_comparisons(_with_cost(session.figures), fusion if several else "", config.choose)
        return comparisons


class _Runs:
    """The runs of a comparison, each trained (or taken as it is) once.

    Args:
        ahead: those that other processes train.
        observer, finished: as of `compare_methods`.
    """

    def __init__(
        self,
        ahead: Mapping[Path, Future[None]],
        observer: Callable[[str, int], Observer],
        finished: Callable[[Result], None],
    ) -> None:
        self._ahead, self._observer, self._finished = ahead, observer, finished
        self._results: dict[Path, Result | None] = {}
        self._data = ""

    def result(self, request: _Request) -> Result | None:
        """None where it diverged."""
        if request.folder not in self._results:
            self._results[request.folder] = self._trained(request)
        return self._results[request.folder]

    def required(self, request: _Request) -> Result:
        """A result without which the others cannot be measured."""
        result = self.result(request)
        if result is None:
            raise UserError(
                f"Expected the runs of {request.label} to end, since the competition strength is measured with them, "
                f"but the one of seed {request.config.seed} diverged. Use a lower --lr or --clip-norm."
            )
        return result

    def _trained(self, request: _Request) -> Result | None:
        if request.folder in self._ahead:
            wait_for(self._ahead[request.folder])
        result = train_or_none(request.config, request.folder, self._observer(request.label, request.config.seed))
        if result is None:
            return None
        self._data = self._data or result.data
        if result.data != self._data:
            raise UserError(
                f"Expected the data {request.config.dataset!r} to stay as they were at the first run, but their "
                "contents changed meanwhile. Compare again into another folder with --out."
            )
        self._finished(result)
        return result


class _Session:
    """The methods of one fusion against each other.

    Args:
        config: its settings.
        variants: the methods.
        folder: of its runs.
        data: with a validation split, for the competition strength; None to leave it out.

    Attributes:
        figures: method -> one mapping a seed, metric -> value; None for a run that diverged.
    """

    def __init__(self, config: Config, variants: Sequence[Variant], folder: Path, data: MultimodalData | None) -> None:
        self._config, self._variants, self._folder, self._data = config, variants, folder, data
        self.figures: dict[str, list[Mapping[str, float] | None]] = {variant.label: [] for variant in variants}

    def requests(self, seed: int) -> list[_Request]:
        """The runs of a seed; those of one modality, which others are measured with, are the next seed's as well."""
        own = [self._request(variant, seed) for variant in self._variants]
        if self._data is None:
            return own
        apart = UnimodalRuns.requests(self._config.fusion, self._data.modalities, seed)
        return [*(self._request(Variant(method, method), of) for method, of in apart), *own]

    def compare(self, seed: int, runs: _Runs) -> None:
        """Adds the figures of a seed."""
        apart = None
        if self._data is not None:
            apart = UnimodalRuns(
                self._config, self._data, lambda method, of: runs.required(self._request(Variant(method, method), of))
            )
            self.figures.setdefault(APART, []).append(apart.figures(seed))
        for variant in self._variants:
            result = runs.result(self._request(variant, seed))
            if result is None:
                self.figures[variant.label].append(None)
                continue
            strengths = apart.strengths(result) if apart is not None and len(result.modalities) > 1 else {}
            self.figures[variant.label].append(_figures(result, strengths))

    def _request(self, variant: Variant, seed: int) -> _Request:
        config = variant.config(replace(self._config, seed=seed))
        return _Request(variant.label, config, self._folder / run_name(variant.label, seed))


def _figures(result: Result, strengths: Mapping[str, float]) -> dict[str, float]:
    figures = {name: value for name, value in result.evaluation.columns().items() if name != "loss"}
    figures |= {f"strength_{name}": value for name, value in strengths.items()}
    figures["epochs"] = result.epochs
    if (seconds := seconds_per_step(result)) is not None:
        figures["step_seconds"] = seconds
    return figures


def _with_cost(
    figures: Mapping[str, Sequence[Mapping[str, float] | None]],
) -> dict[str, list[Mapping[str, float] | None]]:
    """The figures, and the cost of a step over the first method's at the same seed."""
    first = next(iter(figures.values()))
    # Where a run of the first method diverged, its figures of the other seeds have to do.
    known = [run["step_seconds"] for run in first if run is not None and "step_seconds" in run]
    usual = statistics.median(known) if known else math.nan
    found: dict[str, list[Mapping[str, float] | None]] = {}
    for method, runs in figures.items():
        found[method] = []
        for run, baseline in zip(runs, first, strict=True):
            if run is None or "step_seconds" not in run or not known:
                found[method].append(run)
                continue
            over = usual if baseline is None else baseline.get("step_seconds", usual)
            found[method].append({**run, "cost": run["step_seconds"] / over})
    return found


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
