"""A study from its settings to its figures; what is found stays, so that the same call goes on where it ended."""

from __future__ import annotations

import heapq
import io
import itertools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agm.data import MultimodalData
from agm.data._reading import load_tensors
from agm.training.competition_settings import keep_data
from agm.training.errors import UserError
from agm.training.samples import fingerprint, hold_out, load_data
from agm.training.strengths import Concepts, concept_method
from agm.training.study.engines import Engine, engine
from agm.training.study.figures import StudyFigures
from agm.training.study.measured import Outcome, measure
from agm.training.study.requests import (
    Request,
    concept_requests,
    concept_seed,
    cost_requests,
    test_requests,
    trial_requests,
)
from agm.training.study.rows import Rows
from agm.training.study.study_file import Entry, Study, Task
from agm.training.trainer import check_settings
from agm.training.tune import Trial, ranked
from agm.training.variants import Variant
from agm.training.workers import killed_is_told, wait_for
from agm.training.writing import locked, write_bytes

__all__ = ["Finished", "run_study"]

Finished = Callable[[Mapping[str, Any], int, int], None]

# Of the runs that are ready: those of earlier tasks first, and what completes a method before what begins one.
_ORDER = {"concept": 0, "test": 1, "trial": 2, "cost": 3}


def run_study(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    finished: Finished = lambda row, done, total: None,
) -> StudyFigures:
    """Do all runs of a study that are not done yet, and gather its figures.

    For each task and method: every choice of the method's settings is trained with the tuning seeds and judged by its
    accuracy on the validation split; the best one is trained with every seed, to the last epoch, and measured once on
    the test split. A run is the same bit for bit wherever it is done, on one kind of processor. Training times are
    measured last, in turns, one at a time and in this process.

    Args:
        study: what to run.
        folder: made if it does not exist; rows.jsonl there has one line a run.
        jobs: processes of this machine that train at a time, with one thread each.
        scheduler: address of a Dask scheduler whose workers train instead.
        finished: called after each run with its row, and how many of how many are done.

    Raises:
        UserError: settings, data or a folder that do not fit, all before the first run; a process that was killed.
    """
    if jobs < 1:
        raise UserError(f"Expected --jobs to be an integer >= 1, but got {jobs}. Use for example --jobs 2.")
    with locked(folder):
        rows = Rows(folder / "rows.jsonl")
        tasks = [_prepared(task, folder) for task in study.tasks]
        _check(study, tasks)
        runs = _Runs(study, tasks, rows, folder, finished)
        with engine(jobs, scheduler) as where:
            runs.run(where)
        runs.measure_costs()
        chosen = {task.name: runs.chosen(task) for task in tasks}
        return StudyFigures(study, rows, chosen, [task.task for task in tasks], {t.name: t.digest for t in tasks})


@dataclass(frozen=True)
class _Prepared:
    """A task and what its data are."""

    task: Task
    modalities: tuple[str, ...]
    digest: str
    data: MultimodalData

    @property
    def name(self) -> str:
        return self.task.name


def _prepared(task: Task, folder: Path) -> _Prepared:
    """The task with a validation split that is the same for all seeds."""
    data = load_data(task.config)
    if data.validation is None and not task.config.validation:
        raise UserError(
            f"Expected the data of task {task.name!r} to have a validation split, but got none. Hold out a share of "
            "the training split: validation = 0.2."
        )
    if task.config.validation:
        data = hold_out(data, task.config)
        path = keep_data(data, folder / "data" / f"{task.name}.npz")
        task = replace(task, config=replace(task.config, dataset=str(path.resolve()), validation=0.0))
    return _Prepared(task, data.modalities, fingerprint(data), data)


def _check(study: Study, tasks: list[_Prepared]) -> None:
    """Build every method once for every task, and all its choices once; and the networks of one modality each.

    Raises:
        UserError: what does not fit, all of it.
    """
    wrong = []
    for entry in study.entries:
        defined = [task for task in tasks if task.name not in entry.excluded]
        for number, task in enumerate(defined):
            for variant in entry.variants if number == 0 else entry.variants[:1]:
                try:
                    check_settings(variant.config(task.task.config), data=task.data)
                except UserError as error:
                    wrong.append(f"{task.name}, {variant.label}: {error}")
    for task in tasks if study.strength else ():
        for name in task.modalities:
            method = concept_method(task.task.config.fusion, name)
            try:
                check_settings(replace(task.task.config, method=method), data=task.data)
            except UserError as error:
                wrong.append(f"{task.name}, {method}, which `strength` needs: {error}")
    if wrong:
        shown = "\n".join(wrong[:10]) + (f"\nand {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise UserError(f"Expected every method to be defined for its tasks, but got:\n{shown}")


class _Runs:
    """The runs of a study: which are done, which are ready, and which wait for others."""

    def __init__(self, study: Study, tasks: list[_Prepared], rows: Rows, folder: Path, finished: Finished) -> None:
        self._study, self._tasks, self._rows, self._folder, self._finished = study, tasks, rows, folder, finished
        self._numbers = itertools.count()
        self._ready: list[tuple[int, int, int, Request]] = []
        self._trials: dict[tuple[str, str], list[Request]] = {}  # of methods that are not chosen yet
        self._waiting: list[tuple[int, Request]] = []  # for concepts
        self._concept_files: dict[tuple[str, int], list[Path]] = {}  # of a task, and a seed of its test runs
        self._total = self._done = 0
        for number, task in enumerate(tasks):
            asked = concept_requests(study, task.task, task.modalities, task.digest)
            for request in asked:
                self._ask(number, request)
            for seed in study.seeds:
                own = [one for one in asked if one.seed == concept_seed(study, seed)]
                self._concept_files[task.name, seed] = [self._concept_file(one) for one in own]
            for entry in self._entries(task):
                self._total += len(study.seeds)
                self._trials[task.name, entry.label] = trial_requests(study, task.task, entry, task.digest)
                for request in self._trials[task.name, entry.label]:
                    self._ask(number, request)
            if task.name in study.cost_tasks:
                self._total += study.cost_rounds * len(self._entries(task))
        self._choose()

    def run(self, where: Engine) -> None:
        """Until none is left but those that are timed."""
        pending: dict[Future[Outcome], Request] = {}
        while self._ready or pending:
            while self._ready and len(pending) < where.capacity:
                request = heapq.heappop(self._ready)[-1]
                concepts = self._concepts(request) if request.kind == "test" else None
                with killed_is_told():
                    pending[where.executor.submit(measure, request, concepts)] = request
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                self._record(pending.pop(future), wait_for(future))
            self._choose()

    def measure_costs(self) -> None:
        """One at a time, in this process, every round all methods of a task."""
        for task in self._tasks:
            if task.name not in self._study.cost_tasks:
                continue
            requests = cost_requests(self._study, task.task, self.chosen(task), task.digest)
            if any(request.key not in self._rows for request in requests):
                measure(requests[0])  # what a process does but once is no method's cost
            for request in requests:
                if request.key in self._rows:
                    self._done += 1
                else:
                    self._record(request, measure(request))

    def chosen(self, task: _Prepared) -> dict[str, Variant]:
        """Method -> its best choice by the validation accuracies; where runs diverge, of which the fewest do."""
        return {entry.label: self._best(task, entry) for entry in self._entries(task)}

    def _best(self, task: _Prepared, entry: Entry) -> Variant:
        requests = trial_requests(self._study, task.task, entry, task.digest)
        if not requests:
            return entry.variants[0]
        trials = []
        for variant in entry.variants:
            own = self._rows.of(request.key for request in requests if request.variant is variant)
            figures = [row["figures"] or {} for row in own]
            accuracies, losses = (tuple(one.get(name, math.nan) for one in figures) for name in ("accuracy", "loss"))
            trials.append(Trial(variant, accuracies, losses))
        return ranked(trials)[0].variant

    def _entries(self, task: _Prepared) -> list[Entry]:
        return self._study.entries_for(task.task)

    def _ask(self, number: int, request: Request) -> None:
        self._total += request.kind != "test"  # those were counted
        if request.key in self._rows and (request.kind != "concept" or self._concept_file(request).exists()):
            self._done += 1
        else:
            heapq.heappush(self._ready, (number, _ORDER[request.kind], next(self._numbers), request))

    def _choose(self) -> None:
        """Ask for the test runs of methods whose trials are all done, as far as their concepts are there."""
        for number, task in enumerate(self._tasks):
            for entry in self._entries(task):
                trials = self._trials.get((task.name, entry.label))
                if trials is not None and all(trial.key in self._rows for trial in trials):
                    del self._trials[task.name, entry.label]
                    chosen = self._best(task, entry)
                    requests = test_requests(self._study, task.task, entry, chosen, task.digest)
                    self._waiting += [(number, request) for request in requests]
        waiting, self._waiting = self._waiting, []
        for number, request in waiting:
            if request.key in self._rows or all(file.exists() for file in self._files_for(request)):
                self._ask(number, request)
            else:
                self._waiting.append((number, request))

    def _record(self, request: Request, outcome: Outcome) -> None:
        if request.kind == "concept":
            if outcome.row["figures"] is None:
                raise UserError(
                    f"Expected the network of {request.label!r} alone to train in task {request.task.name!r}, since "
                    "the competition strength is measured with it, but it diverged. Use a lower lr there, or "
                    "strength = false."
                )
            file = self._concept_file(request)
            file.parent.mkdir(exist_ok=True)
            content = io.BytesIO()
            torch.save(dict(outcome.concepts), content)
            write_bytes(file, content.getvalue())
        self._rows.add(outcome.row)
        self._done += 1
        self._finished(outcome.row, self._done, self._total)

    def _concept_file(self, request: Request) -> Path:
        return self._folder / "concepts" / f"{request.key}.pt"

    def _files_for(self, request: Request) -> list[Path]:
        """Of the concepts that a test run is measured with."""
        return self._concept_files[request.task.name, request.seed]

    def _concepts(self, request: Request) -> Concepts | None:
        found: dict[str, Any] = {}
        for file in self._files_for(request):
            try:
                found |= load_tensors(file)
            except (OSError, TypeError, ValueError) as error:
                raise UserError(
                    f"Expected {str(file)!r} to be outputs of a network of one modality, but got: {error}. Remove the "
                    "file, and that network is trained again."
                ) from error
        return found or None
