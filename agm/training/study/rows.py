"""What the runs of a study found: a file of rows, one line of JSON each, which grows run by run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agm.data._files import open_ordinary
from agm.training.errors import UserError

__all__ = ["Rows"]

_LARGEST = 2**30  # bytes


class Rows(Mapping[str, Mapping[str, Any]]):
    """Rows by their key. A later row of a key is not written: what is found stays.

    A last line that a crash cut off is left out, and written over by the next row.

    Args:
        path: of the file; none yet is an empty one.

    Raises:
        UserError: a file that cannot be read, or with other lines than rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._whole = 0  # bytes of the lines that are whole
        if path.exists():
            self._read()

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        return self._rows[key]

    def __iter__(self) -> Any:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, which is on the disk afterwards."""
        if row["key"] in self._rows:
            return
        line = (json.dumps(row) + "\n").encode()
        # Read and write, so that a line that was cut off can be taken away.
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line)
        self._rows[row["key"]] = row

    def of(self, keys: Iterable[str]) -> list[Mapping[str, Any]]:
        """The rows of these keys, in their order."""
        return [self._rows[key] for key in keys]

    def _read(self) -> None:
        try:
            with open_ordinary(self.path, _LARGEST) as file:
                content = file.read()
        except (OSError, ValueError) as error:
            raise UserError(f"Expected {str(self.path)!r} to be the rows of a study, but got: {error}.") from error
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                _check(row)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise UserError(
                    f"Expected line {number} of {str(self.path)!r} to be a row of a study, but it does not read. "
                    "Remove the line, and that run is repeated."
                ) from error
            self._rows.setdefault(row["key"], row)
            self._whole += len(line) + 1


def _check(row: Any) -> None:
    """Of the kinds that all else takes for granted: somebody may have edited the file.

    Raises:
        TypeError, KeyError: not so.
    """
    texts = [row[name] for name in ("key", "kind", "task", "method", "variant")]
    integers = [row["seed"], row.get("epochs", 0), row.get("round", 0)]
    figures = row["figures"]
    if figures is None and row["kind"] != "concept":  # it diverged
        figures = {}
    else:
        figures["train_seconds" if row["kind"] == "cost" else "accuracy"] + 0.0
    numbers = [value for value in figures.values() if value is not None]
    kinds = ((texts, str), (integers, int), (list(figures), str), (numbers, (int, float)))
    if not all(isinstance(value, kind) for values, kind in kinds for value in values):
        raise TypeError("texts, whole numbers and figures")
