"""Lists of samples, in the forms in which they are found: commas, spaces, ampersands, tabs, JSON; with byte order marks
and any line ends."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agm.data._files import LARGEST_TEXT, read_text

__all__ = ["classes_of", "names_in", "read_json", "read_rows", "safe_name"]


def read_rows(path: Path, separator: str = ",", columns: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Number (from 1) and cells of each line that is not empty.

    Args:
        path: a text file in UTF-8.
        separator: between cells; with "," quotes hold cells together, as in CSV.
        columns: cells at least.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no such text, or a line has fewer cells; the message names file and line.
    """
    text = read_text(path)
    lines: Iterator[tuple[int, list[str]]]
    if separator in (",", "\t"):
        dialect = {"quoting": csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE}
        reader = csv.reader(text.split("\n"), delimiter=separator, **dialect)  # type: ignore[arg-type]
        lines = ((reader.line_num, cells) for cells in reader)
    elif separator == " ":
        lines = ((number, line.split()) for number, line in enumerate(text.split("\n"), 1))
    else:
        lines = ((number, line.split(separator)) for number, line in enumerate(text.split("\n"), 1))
    try:
        for number, cells in lines:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if len(cells) < columns:
                raise ValueError(
                    f"Expected line {number} of {path} to have {columns} cells between {separator!r}, "
                    f"but got {len(cells)}. Is it the right file, and complete?"
                )
            yield number, cells
    except csv.Error as error:
        raise ValueError(f"Expected {path} to be a list in CSV, but got: {error}. Is it the right file?") from None


def read_json(path: Path, largest: int = 4 * LARGEST_TEXT) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no JSON, or too deep.
    """
    try:
        return json.loads(read_text(path, largest))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"Expected {path} to be JSON, but got: {error}. Download it again.") from None


def classes_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Names of the classes of a set that does not name them: all numbers up to the largest, or all labels, sorted.

    Empty labels are none.
    """
    distinct = sorted(set(labels) - {""})
    if distinct and all(label.isdecimal() and len(label) < 6 for label in distinct):
        return tuple(str(number) for number in range(max(map(int, distinct)) + 1))
    return tuple(distinct)


def safe_name(name: str) -> bool:
    """Whether a name from a list stays inside the folder that it is joined to."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and "\0" not in name and not os.path.isabs(name) and ".." not in parts and ":" not in parts[0]


def names_in(folder: Path) -> frozenset[str]:
    """Names of the entries of a folder, read once; none where it does not exist. Not those of hidden files, which
    desktops leave everywhere.
    """
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
