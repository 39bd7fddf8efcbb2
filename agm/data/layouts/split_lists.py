"""Splits by lists of one's own, or as others publish them: `agm data convert --split-file`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from agm.data._files import read_text
from agm.data.layouts.layout import Layout, Sample
from agm.data.layouts.pickles import load_pickle

__all__ = ["Listed", "split_by_lists"]

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_HEADINGS = {"category", "clip", "file", "filename", "id", "image", "image_path", "name", "path", "sample", "video"}
_PICKLES = (".p", ".pickle", ".pkl")
Entry = tuple[str, str, Path, str]  # split, line, file, and where in it


@dataclass
class Listed:
    """Samples as lists arrange them.

    Args:
        splits: split -> samples, in the order of the lists.
        unlisted: how many samples no list names.
        absent: names that are listed and whose samples the layout leaves out, for want of a file.
        unknown: what is listed and names no sample: the text, and where it stands; only with `skip_bad`.
    """

    splits: dict[str, list[Sample]] = field(default_factory=dict)
    unlisted: int = 0
    absent: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)


def split_by_lists(layout: Layout, lists: Sequence[str], *, skip_bad: bool = False) -> Listed:
    """Arrange the samples of a layout by lists of names.

    A name is a sample's own, or its group's (an actor, a video, a person), which stands for all of the group. It is the
    first cell of a line, between commas, tabs or spaces, or the second one between ampersands, as AVE's lists have it;
    folders before it and an ending behind it are left out, and so are labels after it.

    Args:
        layout: the set.
        lists: "train=FILE", "validation=FILE" and "test=FILE"; or one FILE with all: a JSON file or a pickle with
            {"train": [names], ...}, or a text whose lines end in the name of a split.
        skip_bad: leave out, and list, lines that name no sample.

    Example:
        >>> made = split_by_lists(layout, ["train=fold0_train.csv", "test=fold0_test.csv"])  # doctest: +SKIP
        >>> convert(layout, "fold0.npz", splits=made.splits)  # doctest: +SKIP

    Raises:
        OSError: a list cannot be opened.
        ValueError: it cannot be read, names no sample, or a sample is in two splits.
    """
    names: dict[str, list[Sample]] = {}
    groups: dict[str, list[Sample]] = {}
    for sample in layout.samples:
        names.setdefault(sample.name, []).append(sample)
        groups.setdefault(sample.group, []).append(sample)
    groups.pop("", None)
    left_out = {skipped.name for skipped in layout.skipped}
    made, place = Listed(), dict[int, str]()
    for split, text, path, where in _entries(lists):
        forms = _forms(text)
        found = next((table[form] for table in (names, groups) for form in forms if form in table), None)
        if found is not None:
            _take(made, place, split, found, path, where)
        elif any(form in left_out for form in forms):
            made.absent.append(forms[-1])
        elif where == "line 1" and forms[1].lower() in _HEADINGS:
            continue
        elif skip_bad:
            made.unknown.append((text, f"{where} of {path}"))
        else:
            raise ValueError(
                f"Expected {where} of {path} to name a sample of {layout.title}, such as {layout.samples[0].name!r}, "
                f"but got {text[:80]!r}. Correct the list, or leave such lines out with --skip-bad."
            )
    made.unlisted = len(layout.samples) - len(place)
    return made


def _take(made: Listed, place: dict[int, str], split: str, found: Iterable[Sample], path: Path, where: str) -> None:
    for sample in found:
        before = place.get(id(sample))
        if before is None:
            place[id(sample)] = split
            made.splits.setdefault(split, []).append(sample)
        elif before != split:
            raise ValueError(
                f"Expected each sample in one split alone, but got {sample.name!r} in {before} and, by {where} of "
                f"{path}, in {split}. Correct the lists."
            )


def _entries(lists: Sequence[str]) -> Iterator[Entry]:
    given = [_given(text) for text in lists]
    for split, path in given:
        if split is None and len(given) > 1:
            raise ValueError(
                f"Expected --split-file to be train=FILE, validation=FILE or test=FILE, or one file with all splits, "
                f"but got {str(path)!r} beside others. Say of each file which split it lists."
            )
        if path.suffix.lower() == ".json" or path.suffix.lower() in _PICKLES:
            yield from _of_table(split, path)
            continue
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not (line := line.strip()):
                continue
            own = split or _SPLITS.get(_cells(line)[-1].lower(), "")
            if not own and (number > 1 or _forms(line)[1].lower() not in _HEADINGS):
                raise ValueError(
                    f"Expected line {number} of {path} to end in the name of a split (train, validation or test), but "
                    f"got {line[:80]!r}. Add it, or say which split the file lists: --split-file train={path}"
                )
            yield own, line, path, f"line {number}"


def _given(text: str) -> tuple[str | None, Path]:
    name, equals, place = text.partition("=")
    if not equals or (name.lower() not in _SPLITS and Path(text).exists()):
        return None, Path(text)
    if name.lower() not in _SPLITS or not place:
        raise ValueError(
            f"Expected --split-file to be train=FILE, validation=FILE or test=FILE, or one file with all splits, "
            f"but got {text!r}."
        )
    return _SPLITS[name.lower()], Path(place)


def _of_table(split: str | None, path: Path) -> Iterator[Entry]:
    """Names from {"train": [names], ...}, or from a list of names for one split."""
    content: Any
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(read_text(path))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"Expected {path} to be JSON, but got: {error}. Correct the file.") from None
    else:
        content = load_pickle(path)
    table = content if split is None else {split: content}
    known = isinstance(table, Mapping) and table and all(str(key).lower() in _SPLITS for key in table)
    if not known or not all(_are_names(names) for names in table.values()):
        found = f"the keys {', '.join(map(str, list(table)[:5]))}" if isinstance(table, Mapping) else "no such table"
        raise ValueError(
            f'Expected {path} to hold {{"train": [names], "test": [names]}}, but got {found}. Write each split to '
            "a list of its own: --split-file train=FILE --split-file test=FILE"
        )
    for key, names in table.items():
        for number, name in enumerate(names):
            yield _SPLITS[str(key).lower()], str(name), path, f"entry {number} of {key}"


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(name, (str, int)) for name in value)


def _cells(line: str) -> list[str]:
    for separator in ("&", ",", "\t", " "):
        if separator in line:
            return [cell.strip().strip('"') for cell in line.split(separator)]
    return [line]


def _forms(line: str) -> list[str]:
    """What a line may name: itself, the cell that names it, and that without folders and ending."""
    cells = _cells(line)
    name = cells[1] if "&" in line and len(cells) > 1 else cells[0]
    last = PurePosixPath(name.replace("\\", "/"))
    return [line, name, last.name, last.stem]
