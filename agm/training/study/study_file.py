"""A study as a TOML file: its tasks, its methods, and the settings that each method may choose from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from agm.training.config import OPTIONS, Config, read_toml
from agm.training.errors import UserError
from agm.training.variants import Variant, variant_of

__all__ = ["BASELINE", "Entry", "Study", "Task", "read_study"]

BASELINE = "joint"  # what every method is compared with

_LAST_SEED = 2**32 - 1
_STUDY = ("seeds", "trials", "tuning_seeds", "strength", "cost_tasks", "cost_rounds", "pairs")
_ENTRY = ("method", "grid", "except")
_PER_RUN = ("method", "seed", "device", "threads", OPTIONS, "choose")  # the study's to decide


@dataclass(frozen=True)
class Task:
    """A dataset and the network that is trained on it.

    Args:
        name: in tables and in the names of files.
        config: settings of its runs, less method and seed.
    """

    name: str
    config: Config


@dataclass(frozen=True)
class Entry:
    """A method in a study.

    Args:
        label: its name in tables.
        variants: what it may choose from on the validation split, the same number for every method.
        excluded: names of tasks for which it is not defined.
    """

    label: str
    variants: tuple[Variant, ...]
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Args:
        name: of the file.
        tasks, entries: every entry is trained for every task that it is defined for.
        seeds: of the runs that are measured on the test split.
        trials: variants of each entry.
        tuning_seeds: of the runs that choose among them; none of `seeds`.
        strength: whether the competition strength is measured.
        cost_tasks: names of tasks whose training times are measured, in turns and one at a time.
        cost_rounds: how often.
        pairs: methods that are compared with each other as well, each with the one behind it.
    """

    name: str
    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    trials: int
    tuning_seeds: tuple[int, ...]
    strength: bool = False
    cost_tasks: tuple[str, ...] = ()
    cost_rounds: int = 3
    pairs: tuple[tuple[str, str], ...] = ()

    def entries_for(self, task: Task) -> list[Entry]:
        """Those that are defined for it, the baseline first."""
        return [entry for entry in self.entries if task.name not in entry.excluded]

    def only(self, parts: Sequence[str]) -> Study:
        """The study with some of its cells: TASK, or TASK:METHOD; the baseline is always there.

        Raises:
            UserError: a name that it does not have.
        """
        if not parts:
            return self
        wanted: dict[str, set[str] | None] = {}
        for part in parts:
            task, colon, label = part.partition(":")
            _known(task, [one.name for one in self.tasks], "--only", "task")
            if colon:
                _known(label, [one.label for one in self.entries], "--only", "method")
                if (labels := wanted.setdefault(task, set())) is not None:
                    labels.add(label)
            else:
                wanted[task] = None
        tasks = tuple(task for task in self.tasks if task.name in wanted)
        entries = []
        for entry in self.entries:
            left = {name for name, labels in wanted.items() if labels is None or entry.label in labels}
            out = frozenset(wanted) - left if entry.label != BASELINE else frozenset()
            kept = replace(entry, excluded=entry.excluded | out)
            if any(task.name not in kept.excluded for task in tasks):
                entries.append(kept)
        costs = tuple(name for name in self.cost_tasks if name in wanted)
        left_over = {entry.label for entry in entries}
        pairs = tuple(pair for pair in self.pairs if left_over.issuperset(pair))
        return replace(self, tasks=tasks, entries=tuple(entries), cost_tasks=costs, pairs=pairs)


def read_study(path: str | Path) -> Study:
    """A study from its file.

    >>> study = read_study("studies/field.toml")  # doctest: +SKIP
    >>> [task.name for task in study.tasks]  # doctest: +SKIP
    ['clipart-keywords', ...]

    The file has four tables. `[study]`: seeds, trials, tuning_seeds, strength, cost_tasks, cost_rounds, pairs
    (`[["agm shared", "agm"], ...]`: differences between these methods, too). `[settings]`: settings of all runs
    (`Config`). `[tasks.NAME]`: settings of one task. `[methods.LABEL]`: `method` (the label by
    default), `grid` (setting or option = list of values; their product has as many points as `trials`), `except` (tasks
    for which it is not defined), and settings or options that are fixed.

    Raises:
        UserError: no such file, or one that is no study; the message names the place.
    """
    contents = read_toml(path)
    for name in ("study", "tasks", "methods"):
        if not contents.get(name):
            raise UserError(f"Expected {str(path)!r} to have a table [{name}], but got none. Add it.")
    for name in contents:
        _known(name, ("study", "settings", "tasks", "methods"), str(path), "table")
    try:
        return _study(Path(path).stem, contents)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _study(name: str, contents: Mapping[str, Any]) -> Study:
    head, settings = _table(contents, "study"), _table(contents, "settings")
    for key in head:
        _known(key, _STUDY, "[study]", "setting")
    seeds, trials = _count(head, "seeds"), _count(head, "trials")
    tuning, strength = head.get("tuning_seeds", [100]), head.get("strength", False)
    if not (
        isinstance(tuning, list)
        and tuning
        and all(type(seed) is int and seeds <= seed <= _LAST_SEED for seed in tuning)
        and len(set(tuning)) == len(tuning)
    ):
        raise UserError(
            f"Expected `tuning_seeds` to be a list of different seeds up to 2**32 - 1 that are not among the {seeds} "
            f"of the test runs, but got {tuning!r}. Use for example [100]."
        )
    if not isinstance(strength, bool):
        raise UserError(f"Expected `strength` of [study] to be true or false, but got {strength!r}.")
    names = list(_table(contents, "tasks"))
    tasks = tuple(_task(name, {**settings, **_table(contents["tasks"], name, "tasks.")}) for name in names)
    labels = list(_table(contents, "methods"))
    entries = tuple(_entry(name, _table(contents["methods"], name, "methods."), trials, names) for name in labels)
    if entries[0].label != BASELINE or entries[0].excluded:
        raise UserError(f"Expected the first method to be {BASELINE!r}, for all tasks, but got {entries[0].label!r}.")
    costs = _names_of_tasks(head, "cost_tasks", "[study]", names)
    return Study(
        name,
        tasks,
        entries,
        tuple(range(seeds)),
        trials,
        tuple(tuning),
        strength,
        costs,
        _count(head, "cost_rounds", 3),
        _pairs(head, labels),
    )


def _pairs(head: Mapping[str, Any], labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found = head.get("pairs", [])
    if not isinstance(found, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and pair[0] != pair[1] for pair in found
    ):
        raise UserError(
            f"Expected `pairs` of [study] to be a list of pairs of methods, but got {found!r}. "
            'Use for example [["agm shared", "agm"]].'
        )
    for label in itertools.chain(*found):
        _known(label, labels, "`pairs` of [study]", "method")
    return tuple((first, second) for first, second in found)


def _table(tables: Mapping[str, Any], name: str, prefix: str = "") -> Mapping[str, Any]:
    found = tables.get(name, {})
    if not isinstance(found, Mapping):
        raise UserError(f"Expected [{prefix}{name}] to be a table NAME = VALUE, but got {found!r}.")
    return found


def _names_of_tasks(table: Mapping[str, Any], key: str, where: str, known: Sequence[str]) -> tuple[str, ...]:
    found = table.get(key, [])
    if not isinstance(found, list) or any(name in found[:place] for place, name in enumerate(found)):
        raise UserError(f"Expected `{key}` of {where} to be a list of tasks, each once, but got {found!r}.")
    for name in found:
        _known(name, known, f"`{key}` of {where}", "task")
    return tuple(found)


def _task(name: str, table: Mapping[str, Any]) -> Task:
    # A file of its data has the name, a colon parts it from a method, and it stands in tables.
    if not name or not name.isprintable() or name.startswith(".") or any(letter in name for letter in "/\\:"):
        raise UserError(
            f"Expected the names of tasks to be printable, without '/', '\\', ':' and a leading dot, but got {name!r}. "
            "Rename the task."
        )
    known = [spec.name for spec in fields(Config) if spec.name not in _PER_RUN]
    for key in table:
        _known(key, known, f"[tasks.{name}]", "setting")
    return Task(name, Config(**table, method=BASELINE, device="cpu", threads=1))


def _entry(label: str, table: Mapping[str, Any], trials: int, tasks: Sequence[str]) -> Entry:
    method = table.get("method", label)
    if not label or not label.isprintable():
        raise UserError(f"Expected the labels of methods to be printable, but got {label!r}. Rename the method.")
    if not isinstance(method, str):
        raise UserError(f"Expected `method` of [methods.{label}] to be the name of a method, but got {method!r}.")
    fixed = {key: value for key, value in table.items() if key not in _ENTRY}
    grid = table.get("grid", {})
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"Expected `grid` of [methods.{label}] to be a table NAME = [VALUE, ...], but got {grid!r}.")
    for name in grid:
        if any(value in grid[name][:place] for place, value in enumerate(grid[name])):
            raise UserError(f"Expected `grid` of [methods.{label}] to have each value once, but got {grid[name]!r}.")
        if name in fixed:
            raise UserError(f"Expected setting `{name}` of [methods.{label}] once, but got it in `grid` as well.")
    excluded = _names_of_tasks(table, "except", f"[methods.{label}]", tasks)
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    if len(points) != trials:
        raise UserError(
            f"Expected `grid` of [methods.{label}] to have {trials} points, as many as `trials` gives every method, "
            f"but got {len(points)}."
        )
    variants = tuple(variant_of(method, {**fixed, **point}) for point in points)
    return Entry(label, variants, frozenset(excluded))


def _count(table: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = table.get(name, default)
    if type(value) is not int or value < 1:
        raise UserError(f"Expected `{name}` of [study] to be an integer >= 1, but got {value!r}.")
    return value


def _known(name: str, names: Sequence[str], where: str, what: str) -> None:
    if name not in names:
        raise UserError(f"Expected the {what}s of {where} to be among {', '.join(names)}, but got {name!r}.")
