"""Which runs a study asks for, and by what each is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from agm.training.result import Final
from agm.training.strengths import concept_method
from agm.training.study.study_file import BASELINE, Entry, Study, Task
from agm.training.variants import Variant

__all__ = ["Kind", "Request", "concept_requests", "cost_requests", "test_requests", "trial_requests"]

# A network of one modality, whose outputs others are measured with; a choice of settings, judged on the validation
# split; a chosen one, measured on the test split; a training that is timed.
Kind = Literal["concept", "trial", "test", "cost"]

# Where a run happens does not change what it finds.
_PLACES = ("dataset", "device", "threads")


@dataclass(frozen=True)
class Request:
    """One run.

    Args:
        kind: what for.
        task: of the study.
        label: of the method; the modality of a concept.
        variant: the method with its settings.
        seed: of the run.
        data: digest of the task's data.
        round: of a run that is timed.
        strength: whether the competition strength of a run on the test split is measured.
    """

    kind: Kind
    task: Task
    label: str
    variant: Variant
    seed: int
    data: str
    round: int = 0
    strength: bool = True

    @cached_property
    def config(self) -> Any:
        """Its settings."""
        return self.variant.config(replace(self.task.config, seed=self.seed))

    @property
    def split(self) -> Final:
        """On which it is measured."""
        return "validation" if self.kind == "trial" else "test"

    @cached_property
    def key(self) -> str:
        """The same for the same run, wherever the data lie and whatever trains it."""
        return _digest({**self._facts(), "label": self.label})

    def row(self) -> dict[str, Any]:
        """What a row says of it before it has been run."""
        return {
            "key": self.key,
            "kind": self.kind,
            "task": self.task.name,
            "method": self.label,
            "variant": self.variant.label,
            "seed": self.seed,
            **({"round": self.round} if self.kind == "cost" else {}),
        }

    def _facts(self) -> Mapping[str, Any]:
        settings = {name: value for name, value in asdict(self.config).items() if name not in _PLACES}
        without = {} if self.strength else {"strength": False}
        return {"kind": self.kind, "settings": settings, "data": self.data, "round": self.round, **without}


def concept_requests(study: Study, task: Task, modalities: tuple[str, ...], data: str) -> list[Request]:
    """Networks of one modality each, of the seeds after those of the study, so that no run shares initial weights with
    the concepts that it is measured with."""
    if not study.strength:
        return []
    found = []
    for seed in study.seeds:
        for name in modalities:
            method = concept_method(task.config.fusion, name)
            found.append(Request("concept", task, name, Variant(method, method), concept_seed(study, seed), data))
    return found


def concept_seed(study: Study, seed: int) -> int:
    """Of the concepts for a run of this seed; trials do not have it either."""
    return seed + 1 + max(*study.seeds, *study.tuning_seeds)


def trial_requests(study: Study, task: Task, entry: Entry, data: str) -> list[Request]:
    """All choices of a method, none where there is only one."""
    if len(entry.variants) == 1:
        return []
    return [
        Request("trial", task, entry.label, variant, seed, data)
        for seed in study.tuning_seeds
        for variant in entry.variants
    ]


def test_requests(study: Study, task: Task, entry: Entry, chosen: Variant, data: str) -> list[Request]:
    """Of the chosen settings, every seed."""
    return [Request("test", task, entry.label, chosen, seed, data, strength=study.strength) for seed in study.seeds]


def cost_requests(study: Study, task: Task, chosen: Mapping[str, Variant], data: str) -> list[Request]:
    """Every method in every round, the baseline first."""
    labels = [BASELINE, *(label for label in chosen if label != BASELINE)]
    return [
        Request("cost", task, label, chosen[label], study.seeds[0], data, number)
        for number in range(study.cost_rounds)
        for label in labels
    ]


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]
