"""What a network says of every sample: jointly, by each modality's response, and with each modality alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agm import ContributionMeter, Contributions, masked_logits
from agm._module_state.eval_mode import evaluation
from agm.data import Split
from agm.data.multimodal import Task
from agm.ops.reference import responses

__all__ = ["Predictions", "View", "predict"]

FLOOR = 1e-8  # of a probability in a score, as in the modulation


@dataclass(frozen=True, eq=False)
class View:
    """The answers of a network, asked in one way.

    Args:
        kind: all modalities; the mono-modal response of one; or that one present and all others absent.
        modality: the one; empty for all.
        answers: (N,) int64 classes, -1 for none; (N, L) bool labels; or (N, K) float64 numbers.
        has: (N,) bool, the samples that have the modality.
    """

    kind: Literal["joint", "response", "alone"]
    modality: str
    answers: Tensor
    has: Tensor


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of all samples of a split, on the CPU.

    Args:
        task: of the target.
        target: as `agm.data.Split` has it.
        views: the joint one first; where there are several modalities, response and alone of each.
        scores: (N, M) float64, the cost of each sample by the response of each modality, NaN where it lacks that:
            cross-entropy, mean binary cross-entropy, or squared error.
        confidence: (N,) float64, the probability of the joint answer; None unless the task is one class a sample.
        contributions: of the modalities; None for one modality, or another task than one class a sample.
    """

    task: Task
    target: Tensor
    views: tuple[View, ...]
    scores: Tensor
    confidence: Tensor | None
    contributions: Contributions | None


@torch.no_grad()
def predict(network: nn.Module, split: Split, modalities: tuple[str, ...], batch_size: int = 256) -> Predictions:
    """Ask a plain network (not wrapped in AGM) in eval mode; the modes are as before afterwards.

    Args:
        network: takes the modalities as keywords and returns (B, C) logits.
        split: on the network's device.
        modalities: those that the network takes, one or more.
        batch_size: samples a pass.
    """
    several = len(modalities) > 1
    meter = ContributionMeter(modalities) if several and split.task == "classes" else None
    answers, scores, confidence = [], [], []
    with evaluation(network):
        for begin in range(0, len(split), batch_size):
            part = split.take(slice(begin, begin + batch_size))
            inputs = {name: part.inputs[name] for name in modalities}
            present = None if split.present is None else split.present[begin : begin + batch_size]
            if several:
                masked = masked_logits(network, inputs, present=present)  # (2**M - 1, B, C)
                if meter is not None:
                    meter.update(masked, part.target, present)
                own = responses(masked)
                alone = masked[[(1 << place) - 1 for place in range(len(modalities))]]
                logits = torch.cat([masked[-1:].double(), own.double(), alone.double()])
            else:
                logits = network(**inputs).double().unsqueeze(0)
                own = logits
            answers.append(_answers(logits, split.task).cpu())
            scores.append(_scores(own.double(), part.target).cpu())
            confidence.append(logits[0].softmax(-1).amax(-1).cpu())
    has = torch.ones(len(split), len(modalities), dtype=torch.bool)
    if split.present is not None:
        has = split.present.cpu()
    found = torch.cat(answers, 1)
    views = [View("joint", "", found[0], torch.ones(len(split), dtype=torch.bool))]
    if several:
        for place, name in enumerate(modalities):
            views.append(View("response", name, found[1 + place], has[:, place]))
            views.append(View("alone", name, found[1 + len(modalities) + place], has[:, place]))
    return Predictions(
        task=split.task,
        target=split.target.cpu(),
        views=tuple(views),
        scores=torch.cat(scores, 1).T.where(has, math.nan),
        confidence=torch.cat(confidence) if split.task == "classes" else None,
        contributions=None if meter is None else meter.report(),
    )


def _answers(logits: Tensor, task: Task) -> Tensor:
    """(V, B, C) -> (V, B) classes, or (V, B, C) labels or numbers."""
    if task == "classes":
        largest, answers = logits.max(-1)
        return torch.where(largest.isnan(), -1, answers)
    return logits > 0 if task == "labels" else logits


def _scores(logits: Tensor, target: Tensor) -> Tensor:
    """(M, B, C) -> (M, B)."""
    if target.dtype == torch.int64:
        costs = [F.cross_entropy(own, target, reduction="none") for own in logits]
        return torch.stack(costs).clamp(max=-math.log(FLOOR))
    if target.dtype == torch.bool:
        costs = [F.binary_cross_entropy_with_logits(own, target.double(), reduction="none") for own in logits]
        return torch.stack(costs).clamp(max=-math.log(FLOOR)).mean(-1)
    return (logits - target).square().mean(-1)
