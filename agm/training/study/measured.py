"""One run of a study, from a request to the figures in its row; it needs no files of the study, so that it can be done
by any process."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from agm import contributions
from agm.data import Split
from agm.training.compare import seconds_per_step
from agm.training.environment import reproducible
from agm.training.errors import DivergedError
from agm.training.result import Result
from agm.training.samples import load_data, on_device
from agm.training.strengths import Concepts, concepts_of, strength_of
from agm.training.study.requests import Request
from agm.training.trainer import train

__all__ = ["Outcome", "measure"]

_BATCH = 256  # samples a pass
_RESAMPLES = 2  # the least: intervals of a study are over its seeds

# Torch's generator and its number of threads are the process's, and an engine may give it several runs at a time.
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Args:
        row: for the file of rows; its `figures` are None where the run diverged.
        concepts: of a run of kind "concept": modality -> its outputs on the validation and on the test split.
    """

    row: Mapping[str, Any]
    concepts: Concepts = field(default_factory=dict)


def measure(request: Request, concepts: Concepts | None = None) -> Outcome:
    """Train and measure.

    Args:
        request: the run.
        concepts: of the task's modalities, to measure the competition strength with; None to leave it out.

    Raises:
        UserError: settings or data that do not fit.
    """
    with _ALONE, TemporaryDirectory(prefix="agm-study-") as folder:
        try:
            result = train(request.config, Path(folder) / "run", final=request.split)
        except DivergedError as error:
            return Outcome({**request.row(), "figures": None, "diverged": str(error).split(".")[0]})
        row = {**request.row(), "epochs": result.epochs}
        times = {"step_seconds": seconds_per_step(result), "train_seconds": train_seconds(result)}
        if request.kind == "cost":
            return Outcome({**row, "figures": times})
        figures: dict[str, Any] = {**result.evaluation.columns(), **times}
        if request.kind == "test" and len(result.modalities) > 1:
            with reproducible(result.config):
                figures |= _test_figures(result, concepts)
        found = _concepts(result, request.label) if request.kind == "concept" else {}
        return Outcome({**row, "figures": figures}, found)


def train_seconds(result: Result) -> float | None:
    """Of all steps, and of what the method did between them; without evaluation and files."""
    steps, before = [], 0
    for row in result.history:
        if row.get("step_seconds") is None:
            return None
        steps.append((row["step"] - before) * row["step_seconds"] + row["between_seconds"])
        before = row["step"]
    return math.fsum(steps)


def _test_figures(result: Result, concepts: Concepts | None) -> dict[str, float]:
    """What only a finished network is asked: of classes the Shapley values of its accuracy; competition strengths."""
    fit, test = _splits(result)
    figures: dict[str, float] = {}
    if test.task == "classes":  # of which alone accuracy is a game of the modalities
        report = contributions(
            result.network, test.batches(_BATCH), result.modalities, present=test.present, sample_values=False
        )
        values = list(report.contributions.values())
        figures |= {f"contribution_{name}": value for name, value in report.contributions.items()}
        figures["shapley_gap"] = max(values) - min(values)
    # There may be none that the network knows of, and then nothing to read a concept from.
    if concepts is not None and hasattr(result.network, "fused_features"):
        strengths = strength_of(result.network, fit, test, concepts, ridge="cv", resamples=_RESAMPLES)
        figures |= {f"strength_{name}": strength.value for name, strength in strengths.items()}
    return figures


def _concepts(result: Result, modality: str) -> Concepts:
    fit, test = _splits(result)
    with reproducible(result.config):
        found = concepts_of({modality: result.network}, fit, test)
    # Without the memory of what they are views of: they travel between processes.
    return {name: (first.clone(), second.clone()) for name, (first, second) in found.items()}


def _splits(result: Result) -> tuple[Split, Split]:
    data = load_data(result.config)  # a task of a study has its validation split in its data
    assert data.validation is not None
    device = torch.device(result.config.device)
    return tuple(on_device(split, data.modalities, device) for split in (data.validation, data.test))  # type: ignore[return-value]
