"""How competition strength is measured: the settings, the samples held out for it, and the files that keep both."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from agm import data as datasets
from agm.data import MultimodalData
from agm.data._files import read_text
from agm.training.config import Config, differences, read_config, write_config
from agm.training.environment import environment
from agm.training.errors import UserError
from agm.training.samples import fingerprint
from agm.training.writing import write_text

__all__ = ["CompetitionSettings", "held_out", "keep_data", "keep_settings"]


@dataclass(frozen=True, kw_only=True)
class CompetitionSettings:
    """How competition strength is measured.

    Args:
        ridge: penalty of the regression, or "cv" for one chosen by cross-validation at each measurement.
        holdout: share of the training split that is held out for the regression, where there is no validation split.
        every: epochs between two measurements; the untrained and the trained network are always measured.
        resamples: of the bootstrap.

    Raises:
        UserError: a value out of its range.
    """

    ridge: float | Literal["cv"] = "cv"
    holdout: float = 0.2
    every: int = 1
    resamples: int = 1000

    def __post_init__(self) -> None:
        number = isinstance(self.ridge, int | float) and self.ridge >= 0 and math.isfinite(self.ridge)
        for name, valid, expected in (
            ("ridge", self.ridge == "cv" or number, "a finite number >= 0, or cv"),
            ("holdout", 0 < self.holdout < 1, "a number > 0 and < 1"),
            ("every", self.every >= 1, "an integer >= 1"),
            ("resamples", self.resamples >= 2, "an integer >= 2"),
        ):
            if not valid:
                raise UserError(f"Expected --{name} to be {expected}, but got {getattr(self, name)!r}.")


def held_out(data: MultimodalData, share: float, seed: int) -> MultimodalData:
    """The same data with a random part of the training split as validation split.

    Raises:
        UserError: a part would have fewer than two samples.
    """
    total = len(data.train)
    count = round(share * total)
    if min(count, total - count) < 2:
        raise UserError(
            f"Expected --holdout to leave two samples or more on both sides, but {share} of {total} is {count}. "
            "Choose another share, or add samples."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    first, second = order[:count].sort().values, order[count:].sort().values
    return replace(data, train=data.train.take(second), validation=data.train.take(first))


def keep_data(data: MultimodalData, path: Path) -> Path:
    """`data` in a file, from which each run is repeatable by its own settings; an equal file stays.

    Raises:
        UserError: the file is there and holds other data, or `data` cannot be stored.
    """
    if path.exists():
        try:
            same = fingerprint(datasets.load(path)) == fingerprint(data)
        except (OSError, ValueError) as error:
            raise UserError(f"{error} Measure again into another folder with --out.") from error
        if not same:
            raise UserError(
                f"Expected {str(path)!r} to hold the data of this measurement, but their contents changed. "
                "Measure again into another folder with --out."
            )
        return path
    try:
        return datasets.save(data, path)
    except ValueError as error:
        raise UserError(str(error)) from error


def keep_settings(folder: Path, config: Config, methods: Sequence[str], measurement: CompetitionSettings) -> None:
    """Write training.toml and competition.toml; where they exist, see that they say the same.

    Raises:
        UserError: they do not. Other methods are no difference: they are added to those that are there.
    """
    import tomli_w

    training, settings = folder / "training.toml", folder / "competition.toml"
    if training.exists() and settings.exists():
        # What to train and how to measure it are two files, for the first one is read by every --config.
        changed = differences(config, replace(read_config(training).resolved(), method=config.method))
        before = _read(settings)
        changed += [f"{k} ({v!r}, {before.get(k)!r})" for k, v in asdict(measurement).items() if before.get(k) != v]
        if changed:
            raise UserError(
                f"Expected the settings to be those of the measurement in {str(folder)!r}, but got others "
                f"(asked for, in the folder): {', '.join(changed)}. Choose another folder with --out."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(training, config, environment(config), replace_file=True)
    options = " ".join(f"--{name} {value}" for name, value in asdict(measurement).items())
    write_text(
        settings,
        f"# Repeat this measurement:  agm competition --methods {','.join(methods)} --config training.toml {options}\n"
        f"\n{tomli_w.dumps({'competition': asdict(measurement)})}",
    )


def _read(settings: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(read_text(settings))["competition"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Expected {str(settings)!r} to be as agm competition wrote it, but it does not read: {error}. "
            "Measure again into another folder with --out."
        ) from error
