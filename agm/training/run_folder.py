"""The folder of a run: its files, and the tables that grow while it trains."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agm.data._files import open_ordinary, read_text, replacing
from agm.training.errors import UserError
from agm.training.writing import write_text

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
        write_text(self.result, json.dumps(values, indent=2) + "\n")

    def read_result(self) -> dict[str, Any]:
        """Contents of result.json.

        Raises:
            UserError: the run is not finished.
        """
        try:
            found = json.loads(read_text(self.result))
            if not isinstance(found, dict):
                raise TypeError
            return cast(dict[str, Any], found)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"Expected {str(self.path)!r} to be a finished run, but its result.json does not read. "
                f"Finish it: {self.resume_command}"
            ) from error


class Table:
    """A CSV file to which rows are appended, each batch of rows flushed to the file at once."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Iterable[Row] = ()) -> None:
        """Begins the file anew with `rows`, in one move."""
        self._columns = columns
        with replacing(path) as file:
            file.write(self._text(rows, header=True))
            own = os.dup(file.fileno())  # the file itself, whatever has its name by the next row
        self._file = open(own, "ab")  # noqa: SIM115

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows; columns that a row does not name are empty."""
        self._file.write(self._text(rows))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _text(self, rows: Iterable[Row], header: bool = False) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(_written(row) for row in rows)
        return text.getvalue().encode("utf-8")


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file at once; what there is no figure for (None, NaN) is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None or value != value else value for value in row] for row in rows)
    write_text(path, text.getvalue())


def read_table(
    path: Path, keep: Callable[[Row], bool] = lambda row: True, columns: Sequence[str] | None = None
) -> list[Row]:
    """Rows of a CSV file of a run, numbers as numbers and empty fields as None.

    A last line that was cut off by a crash is left out, and so are lines that are damaged: those of another number of
    fields, or of which `keep` can make nothing. All are, where the file has other columns than `columns`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_ordinary(path) as file:
            text = file.read().removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    except OSError as error:
        raise UserError(
            f"Expected {str(path)!r} to be a table of a run, but got: {error.strerror}. Give the folder of a run."
        ) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    lines = [line + "\n" for line in text.replace("\r\n", "\n").split("\n")[:-1]]
    rows = []
    try:
        reader = csv.DictReader(lines)
        if columns is not None and list(reader.fieldnames or ()) != list(columns):
            return []
        for fields in reader:
            if None in fields or None in fields.values():
                continue
            row = {name: _read(field) for name, field in fields.items()}
            try:
                kept = keep(row)
            except (KeyError, TypeError):
                continue
            if kept:
                rows.append(row)
    except csv.Error:  # a field without end
        pass
    return rows


def metric_columns(modalities: Sequence[str], further: Sequence[str] = ()) -> list[str]:
    """Columns of metrics.csv, one row an epoch; epochs count from 1, `step` counts the steps taken so far.

    Accuracies are shares: of samples whose class is right, of labels that are right, or of the variance of numbers that
    is explained. `further` are figures of the task's own (`agm.training.answers.FURTHER`).

    `step_seconds` is the mean time of a step, `between_seconds` what the strategy took before the first and after the
    last step, `seconds` all of the epoch with its evaluation.
    """
    per_modality = ("response", "absent", "score", "ratio", "coefficient")
    return [
        *("epoch", "step", "split", "lr", "train_loss", "train_accuracy", "loss", "accuracy"),
        *(f"{kind}_{name}" for kind in per_modality for name in modalities),
        *further,
        *("step_seconds", "between_seconds", "seconds"),
    ]


def step_columns(modalities: Sequence[str]) -> list[str]:
    """Columns of steps.csv, one row a step; steps and epochs count from 1."""
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
