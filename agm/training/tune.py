"""Settings chosen on a validation split; the test split is not looked at."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agm.training.answers import rightness
from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.evaluation import Evaluation
from agm.training.observer import Observer
from agm.training.result import Result
from agm.training.run_folder import run_name, write_rows
from agm.training.train_or_none import train_or_none
from agm.training.trainer import check_settings
from agm.training.variants import Variant, parse_value, split_variants, variant_of
from agm.training.writing import locked

__all__ = ["Trial", "best", "chosen", "parse_setting", "ranked", "tune_method", "write_trials"]


@dataclass(frozen=True)
class Trial:
    """One choice of settings, over the seeds.

    Args:
        variant: the method with these settings.
        accuracies, losses: of the joint logits on the validation split, one a seed;
            NaN where that run diverged.
        measure: what the accuracies are called where people read them.
    """

    variant: Variant
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    measure: str = "accuracy"

    @property
    def accuracy(self) -> float:
        """Mean over the seeds; NaN where a run diverged."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracy over the seeds (N - 1); None for a single seed, or where one diverged."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 and not self.diverged else None

    @property
    def loss(self) -> float:
        """Mean over the seeds; NaN where a run diverged."""
        return statistics.fmean(self.losses)

    @property
    def diverged(self) -> int:
        """How many runs did."""
        return sum(math.isnan(accuracy) for accuracy in self.accuracies)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """By mean validation accuracy, among equals by mean validation loss; behind them those of which a run diverged."""
    return sorted(
        trials, key=lambda trial: (trial.diverged, 0, 0) if trial.diverged else (0, -trial.accuracy, trial.loss)
    )


def chosen(trials: Sequence[Trial]) -> Trial | None:
    """The first of them; None where a run of every one diverged."""
    first = ranked(trials)[0]
    return None if first.diverged else first


def best(trials: Sequence[Trial]) -> Trial:
    """The chosen one.

    Raises:
        UserError: there is none.
    """
    choice = chosen(trials)
    if choice is None:
        raise UserError(
            "Expected a choice of settings of which no run diverges, but of each one did. "
            "Use a lower --lr, --clip-norm, or other values of --setting."
        )
    return choice


def parse_setting(text: str) -> tuple[str, list[Any]]:
    """alpha=0.25,0.5,1 -> ("alpha", [0.25, 0.5, 1]).

    Raises:
        UserError: not of this form, or a value that is there twice.
    """
    name, _, values = text.partition("=")
    found = [parse_value(value) for value in split_variants(values)]
    if not name.strip() or not found or any(value in found[:place] for place, value in enumerate(found)):
        raise UserError(
            f"Expected --setting to be NAME=VALUE,VALUE,... with different values, but got {text!r}. "
            "Use for example --setting alpha=0.5,1,1.5."
        )
    return name.strip().replace("-", "_"), found


def tune_method(
    config: Config,
    settings: Mapping[str, Sequence[Any]],
    seeds: int,
    folder: Path,
    observer: Callable[[str, int], Observer] = lambda method, seed: Observer(),
    finished: Callable[[Result], None] = lambda result: None,
) -> list[Trial]:
    """Train `config.method` with every combination of settings and seeds, and measure it on the validation split.

    Runs are ordinary ones in `folder`, whose results are of the validation split; finished ones are not repeated.

    Args:
        config: all other settings; `validation` must hold out a share, unless the data have a split of their own.
        settings: name -> its values; settings of `Config` or options of the method.
        seeds: how many: `config.seed`, `config.seed + 1`, ...
        folder: made if it does not exist.
        observer: (variant's label, seed) -> who is told about that run.
        finished: called after each run that did not diverge.

    Raises:
        UserError: settings or data that do not fit; no validation split.
    """
    if seeds < 1 or not settings:
        raise UserError(
            "Expected --setting at least once and --seeds to be an integer >= 1. "
            "Use for example --setting alpha=0.5,1,1.5 --seeds 3."
        )
    values = [dict(zip(settings, point, strict=True)) for point in itertools.product(*settings.values())]
    variants = [variant_of(config.method, point) for point in values]
    for variant in variants:
        check_settings(variant.config(config), final="validation")
    with locked(folder):
        found: dict[str, list[Evaluation | None]] = {variant.label: [] for variant in variants}
        for number in range(seeds):
            for variant in variants:
                request = variant.config(replace(config, seed=config.seed + number))
                run = folder / run_name(variant.label, request.seed)
                result = train_or_none(request, run, observer(variant.label, request.seed), final="validation")
                found[variant.label].append(None if result is None else result.evaluation)
                if result is not None:
                    finished(result)
        done = next((one for evaluations in found.values() for one in evaluations if one is not None), None)
        measure = rightness(() if done is None else done.further)
        return [
            Trial(
                variant,
                tuple(math.nan if one is None else one.accuracy for one in found[variant.label]),
                tuple(math.nan if one is None else one.loss for one in found[variant.label]),
                measure,
            )
            for variant in variants
        ]


def write_trials(path: Path, trials: Sequence[Trial], first_seed: int) -> None:
    """CSV, one row a choice: its mean figures, then the validation accuracy at each seed."""
    names = [f"seed_{first_seed + number}" for number in range(len(trials[0].accuracies))]
    columns = ["method", "validation_accuracy", "deviation", "validation_loss", "chosen", *names]
    choice = chosen(trials)
    rows = (
        [one.variant.label, one.accuracy, one.deviation, one.loss, "yes" if one is choice else "", *one.accuracies]
        for one in trials
    )
    write_rows(path, columns, rows)
