"""The folder of a run: its files, and the tables that grow while it trains."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agm.training.errors import UserError

__all__ = [
    "STATISTICS",
    "Row",
    "RunFolder",
    "Table",
    "metric_columns",
    "read_table",
    "run_name",
    "step_columns",
    "write_rows",
]

Row = dict[str, Any]  # column -> number, text or None

# What strategies tell of a step, one number a modality.
STATISTICS = ("score", "ratio", "reference_ratio", "coefficient")


def run_name(method: str, seed: int) -> str:
    """Name of the folder of one run among several; different methods have different ones."""
    name = re.sub(r"[(,]", "-", method.replace(":", "-")).replace(")", "")
    return f"{re.sub(r'[^A-Za-z0-9._=+-]', '_', name)}-seed{seed}"


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def steps(self) -> Path:
        return self.path / "steps.csv"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def picture(self) -> Path:
        return self.path / "training.png"

    @property
    def resume_command(self) -> str:
        return f"agm train --resume {shlex.quote(str(self.path))}"

    def holds_run(self) -> bool:
        """Whether any file of a run is here."""
        return any(file.exists() for file in (self.config, self.metrics, self.steps, self.checkpoint))

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Write result.json, whole or not at all; a run that has it is finished."""
        partial = self.result.with_name(self.result.name + ".partial")
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.result)

    def read_result(self) -> dict[str, Any]:
        """Contents of result.json.

        Raises:
            UserError: the run is not finished.
        """
        try:
            return cast(dict[str, Any], json.loads(self.result.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(
                f"Expected {str(self.path)!r} to be a finished run, but its result.json does not read. "
                f"Finish it: {self.resume_command}"
            ) from error


class Table:
    """A CSV file to which rows are appended, each batch of rows flushed to the file at once."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Iterable[Row] = ()) -> None:
        """Begins the file anew with `rows`, in one move."""
        partial = path.with_name(path.name + ".partial")
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_written(row) for row in rows)
        os.replace(partial, path)
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows; columns that a row does not name are empty."""
        self._writer.writerows(_written(row) for row in rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file at once; what there is no figure for (None, NaN) is empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if value is None or value != value else value for value in row] for row in rows)


def read_table(path: Path, keep: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Rows of a CSV file of a run, numbers as numbers and empty fields as None.

    A last line that was cut off by a crash is left out.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = [line for line in file if line.endswith("\n")]
    except OSError as error:
        raise UserError(
            f"Expected {str(path)!r} to be a table of a run, but got: {error.strerror}. Give the folder of a run."
        ) from error
    rows = ({name: _read(text) for name, text in row.items()} for row in csv.DictReader(lines))
    return [row for row in rows if keep(row)]


def metric_columns(modalities: Sequence[str]) -> list[str]:
    """Columns of metrics.csv, one row an epoch; epochs count from 0, `step` counts the steps taken so far.

    `step_seconds` is the mean time of a step, `between_seconds` what the strategy took before the first and after the
    last step, `seconds` all of the epoch with its evaluation.
    """
    per_modality = ("response", "absent", "score", "ratio", "coefficient")
    return [
        *("epoch", "step", "split", "lr", "train_loss", "train_accuracy", "loss", "accuracy"),
        *(f"{kind}_{name}" for kind in per_modality for name in modalities),
        *("step_seconds", "between_seconds", "seconds"),
    ]


def step_columns(modalities: Sequence[str]) -> list[str]:
    """Columns of steps.csv, one row a step; steps count from 1, epochs from 0."""
    return ["step", "epoch", "loss", *(f"{kind}_{name}" for kind in STATISTICS for name in modalities)]


def _written(row: Row) -> dict[str, str]:
    # repr of a float is the shortest text that reads back as the same number.
    return {
        name: "" if value is None else repr(value) if isinstance(value, float) else str(value)
        for name, value in row.items()
    }


def _read(text: str) -> float | int | str | None:
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
