"""What a study found: for each task its methods against the baseline, their costs, and their ranks over tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from agm.training.compare import Comparison, mean_interval, paired_comparisons
from agm.training.study.ranks import Ranking, rank_methods
from agm.training.study.requests import concept_requests, cost_requests, test_requests
from agm.training.study.study_file import BASELINE, Study, Task
from agm.training.variants import Variant

__all__ = ["StudyFigures", "certain_methods", "holm"]

_NOT_COMPARED = ("loss", "step_seconds", "train_seconds")  # runs of a study may have trained side by side


class StudyFigures:
    """The figures of a finished study, from its rows.

    Args:
        study: what was run.
        rows: key -> row.
        chosen: task -> method -> the settings that were chosen.
        tasks: as they were run.
        digests: task -> digest of its data.

    Attributes:
        chosen: as given.
    """

    def __init__(
        self,
        study: Study,
        rows: Mapping[str, Mapping[str, Any]],
        chosen: Mapping[str, Mapping[str, Variant]],
        tasks: Sequence[Task],
        digests: Mapping[str, str],
    ) -> None:
        self.study, self.chosen, self.tasks = study, chosen, tuple(task.name for task in tasks)
        self._runs: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
        self._concepts: dict[str, dict[str, list[float]]] = {}
        self._timed: dict[str, list[Mapping[str, Any]]] = {}
        self._compared: dict[str, list[Comparison]] = {}  # as far as somebody asked
        for task in tasks:
            digest, variants = digests[task.name], chosen[task.name]
            self._runs[task.name] = {
                entry.label: [rows[r.key] for r in test_requests(study, task, entry, variants[entry.label], digest)]
                for entry in study.entries_for(task)
            }
            # Of these settings and data: a folder keeps the rows of others.
            names = [row["method"] for row in rows.values() if (row["kind"], row["task"]) == ("concept", task.name)]
            concepts: dict[str, list[float]] = {}
            for request in concept_requests(study, task, tuple(dict.fromkeys(names)), digest):
                if request.key in rows:
                    concepts.setdefault(request.label, []).append(rows[request.key]["figures"]["accuracy"])
            self._concepts[task.name] = concepts
            if task.name in study.cost_tasks:
                self._timed[task.name] = [rows[r.key] for r in cost_requests(study, task, variants, digest)]

    def runs(self, task: str, label: str) -> list[Mapping[str, float] | None]:
        """Figures of each seed's run on the test split; None of one that diverged."""
        return [row["figures"] for row in self._runs[task][label]]

    def alone(self, task: str) -> dict[str, list[float]]:
        """Modality -> test accuracies of networks of it alone, which the competition strength is measured with; they
        have the settings of the task, and were not tuned."""
        return self._concepts[task]

    def epochs(self, task: str, label: str) -> int | None:
        """That the method trained, all stages together; None where every run diverged."""
        return max((row["epochs"] for row in self._runs[task][label] if "epochs" in row), default=None)

    def comparisons(self, task: str) -> list[Comparison]:
        """Every method against the baseline, paired by seed."""
        if task not in self._compared:
            self._compared[task] = self._comparisons(task)
        return self._compared[task]

    def _comparisons(self, task: str) -> list[Comparison]:
        kept: dict[str, list[Mapping[str, float] | None]] = {
            label: [
                None if run is None else {name: value for name, value in run.items() if name not in _NOT_COMPARED}
                for run in self.runs(task, label)
            ]
            for label in self._runs[task]
        }
        if not any(run for runs in kept.values() for run in runs):  # so that a table says that all diverged
            kept = {label: [{"accuracy": math.nan} for _ in runs] for label, runs in kept.items()}
        return paired_comparisons(kept)

    def compared(self, task: str, metric: str) -> dict[str, Comparison]:
        """Method -> its comparison by this metric, of the methods that have it."""
        return {found.method: found for found in self.comparisons(task) if found.metric == metric}

    def differences(self, first: str, second: str) -> dict[str, tuple[float, float | None, float | None]]:
        """Task -> (mean, low, high) of the accuracy of a method minus that of another one, paired by seed, of the tasks
        that have both and of seeds with which neither diverged. Under "" the mean over all these tasks, whose interval
        is again over the seeds."""
        found, by_seed = {}, []
        for task in self.tasks:
            if first in self._runs[task] and second in self._runs[task]:
                pairs = zip(self.runs(task, first), self.runs(task, second), strict=True)
                gaps = [math.nan if a is None or b is None else a["accuracy"] - b["accuracy"] for a, b in pairs]
                by_seed.append(gaps)
                if known := [gap for gap in gaps if not math.isnan(gap)]:
                    found[task] = mean_interval(known)
        means = [statistics.fmean(gaps) for gaps in zip(*by_seed, strict=True) if not any(map(math.isnan, gaps))]
        return {**found, **({"": mean_interval(means)} if means else {})}

    def certain(self, task: str, metric: str = "accuracy") -> set[str]:
        """The methods whose difference to the baseline remains after Holm's correction for the number of methods."""
        return certain_methods(self.compared(task, metric))

    def costs(self, task: str) -> dict[str, tuple[float, float | None, float | None]]:
        """Method -> (mean, low, high) of its training time over the baseline's in the same round; empty where none was
        measured. A method that diverged while it was timed is left out."""
        rounds: dict[int, dict[str, float]] = {}
        for row in self._timed.get(task, ()):
            if row["figures"] is not None:
                rounds.setdefault(row["round"], {})[row["method"]] = row["figures"]["train_seconds"]
        found: dict[str, tuple[float, float | None, float | None]] = {}
        for label in self._runs[task]:
            ratios = [r[label] / r[BASELINE] for r in rounds.values() if label in r and BASELINE in r]
            if ratios:
                found[label] = mean_interval(ratios)
        return found

    def ranking(self) -> Ranking:
        """Of the methods that are defined for all tasks, by their mean accuracy over the seeds; a run that diverged
        counts as the task's worst."""
        return self._ranking

    def order(self) -> list[str]:
        """The methods by their mean rank, and behind them those that have none."""
        ranks = self.ranking().ranks
        return [*ranks, *(entry.label for entry in self.study.entries if entry.label not in ranks)]

    @cached_property
    def _ranking(self) -> Ranking:
        scores: dict[str, list[float]] = {}
        for label in (entry.label for entry in self.study.entries):
            if all(label in self._runs[task] for task in self.tasks):
                scores[label] = [self._mean(task, label) for task in self.tasks]
        return rank_methods(scores)

    def _mean(self, task: str, label: str) -> float:
        values = [math.nan if run is None else run.get("accuracy", math.nan) for run in self.runs(task, label)]
        return math.nan if any(map(math.isnan, values)) else statistics.fmean(values)


def certain_methods(found: Mapping[str, Comparison]) -> set[str]:
    """The methods whose difference to the baseline remains after Holm's correction for the number of methods.

    Args:
        found: method -> its comparison, the baseline's among them, all by one metric of one task.
    """
    from scipy import stats  # type: ignore[import-untyped]

    baseline, p = found[BASELINE].values, {}
    for label, comparison in found.items():
        pairs = [a - b for a, b in zip(comparison.values, baseline, strict=True) if not math.isnan(a - b)]
        if label != BASELINE and len(pairs) > 1 and any(pair != pairs[0] for pair in pairs):
            p[label] = float(stats.ttest_1samp(pairs, 0.0).pvalue)
    return {label for label, adjusted in holm(p).items() if adjusted < 0.05}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm, 1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, largest = {}, 0.0
    for number, (name, value) in enumerate(sorted(p.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (len(p) - number) * value))
        adjusted[name] = largest
    return adjusted
