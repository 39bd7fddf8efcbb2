"""A study as a TOML file: its tasks, its methods, and the settings that each method may choose from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from agm.training.config import OPTIONS, Config, read_toml
from agm.training.errors import UserError
from agm.training.run_folder import run_name
from agm.training.variants import Variant, variant_of

__all__ = ["BASELINE", "Entry", "Study", "Task", "read_study"]

BASELINE = "joint"  # what every method is compared with

_STUDY = ("seeds", "trials", "tuning_seeds", "strength", "cost_tasks", "cost_rounds")
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
        return replace(self, tasks=tasks, entries=tuple(entries), cost_tasks=costs)


def read_study(path: str | Path) -> Study:
    """A study from its file.

    >>> study = read_study("studies/field.toml")  # doctest: +SKIP
    >>> [task.name for task in study.tasks]  # doctest: +SKIP
    ['clipart-keywords', ...]

    The file has four tables. `[study]`: seeds, trials, tuning_seeds, strength, cost_tasks, cost_rounds. `[settings]`:
    settings of all runs (`Config`). `[tasks.NAME]`: settings of one task. `[methods.LABEL]`: `method` (the label by
    default), `grid` (setting or option = list of values; their product has as many points as `trials`), `except` (tasks
    for which it is not defined), and settings or options that are fixed.

    Raises:
        UserError: no such file, or one that is no study; the message names the place.
    """
    contents = read_toml(path)
    for name in ("study", "tasks", "methods"):
        if not isinstance(contents.get(name), Mapping) or not contents[name]:
            raise UserError(f"Expected {str(path)!r} to have a table [{name}], but got none. Add it.")
    for name in contents:
        _known(name, ("study", "settings", "tasks", "methods"), str(path), "table")
    try:
        return _study(Path(path).stem, contents)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _study(name: str, contents: Mapping[str, Any]) -> Study:
    head = contents["study"]
    for key in head:
        _known(key, _STUDY, "[study]", "setting")
    seeds, trials = _count(head, "seeds"), _count(head, "trials")
    tuning = head.get("tuning_seeds", [100])
    if not (isinstance(tuning, list) and tuning and all(type(seed) is int and seed >= seeds for seed in tuning)):
        raise UserError(
            f"Expected `tuning_seeds` to be a list of seeds that are not among the {seeds} of the test runs, but got "
            f"{tuning!r}. Use for example [100]."
        )
    tasks = tuple(_task(label, {**contents.get("settings", {}), **table}) for label, table in contents["tasks"].items())
    entries = tuple(_entry(label, table, trials, tasks) for label, table in contents["methods"].items())
    if not entries or entries[0].label != BASELINE or entries[0].excluded:
        raise UserError(f"Expected the first method to be {BASELINE!r}, for all tasks, but got {entries[0].label!r}.")
    folders = [run_name(entry.label, 0) for entry in entries]
    if len(set(folders)) != len(folders):
        raise UserError(f"Expected labels of methods that name different files, but got {sorted(folders)}.")
    costs = tuple(head.get("cost_tasks", ()))
    for task in costs:
        _known(task, [one.name for one in tasks], "`cost_tasks`", "task")
    return Study(
        name,
        tasks,
        entries,
        tuple(range(seeds)),
        trials,
        tuple(tuning),
        bool(head.get("strength", False)),
        costs,
        _count(head, "cost_rounds", 3),
    )


def _task(name: str, table: Mapping[str, Any]) -> Task:
    known = [spec.name for spec in fields(Config) if spec.name not in _PER_RUN]
    for key in table:
        _known(key, known, f"[tasks.{name}]", "setting")
    return Task(name, Config(**table, method=BASELINE, device="cpu", threads=1))


def _entry(label: str, table: Mapping[str, Any], trials: int, tasks: Sequence[Task]) -> Entry:
    method = table.get("method", label)
    fixed = {key: value for key, value in table.items() if key not in _ENTRY}
    grid = table.get("grid", {})
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"Expected `grid` of [methods.{label}] to be a table NAME = [VALUE, ...], but got {grid!r}.")
    for name in grid:
        if name in fixed:
            raise UserError(f"Expected setting `{name}` of [methods.{label}] once, but got it in `grid` as well.")
    for task in table.get("except", ()):
        _known(task, [one.name for one in tasks], f"`except` of [methods.{label}]", "task")
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    if len(points) != trials:
        raise UserError(
            f"Expected `grid` of [methods.{label}] to have {trials} points, as many as `trials` gives every method, "
            f"but got {len(points)}."
        )
    variants = tuple(variant_of(method, {**fixed, **point}) for point in points)
    return Entry(label, variants, frozenset(table.get("except", ())))


def _count(table: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = table.get(name, default)
    if type(value) is not int or value < 1:
        raise UserError(f"Expected `{name}` of [study] to be an integer >= 1, but got {value!r}.")
    return value


def _known(name: str, names: Sequence[str], where: str, what: str) -> None:
    if name not in names:
        raise UserError(f"Expected the {what}s of {where} to be among {', '.join(names)}, but got {name!r}.")
