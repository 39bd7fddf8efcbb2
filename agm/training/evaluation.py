"""What a network does on a split: with all modalities, each one's response, and without each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from agm import masked_logits
from agm._module_state.eval_mode import evaluation
from agm.data import Split
from agm.ops.reference import responses
from agm.training.answers import Answers, further_figures

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one split; accuracies are shares from 0 to 1: of labels the share that is right, and of numbers the
    share of the variance explained, which can be below 0 (`agm.training.answers.Answers`).

    Args:
        samples: size of the split.
        loss, accuracy: mean plain loss of the task and accuracy of the joint logits.
        responses: modality -> accuracy of its mono-modal response, on the samples that have it; NaN if none does.
        absent: modality -> accuracy of the network without it; empty for a network of one modality.
        further: figures of the joint logits that only labels or numbers have.
    """

    samples: int
    loss: float
    accuracy: float
    responses: Mapping[str, float]
    absent: Mapping[str, float]
    further: Mapping[str, float] = field(default_factory=dict)

    def columns(self) -> dict[str, float]:
        """The figures by the names that they have in metrics.csv."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            **{f"response_{name}": value for name, value in self.responses.items()},
            **{f"absent_{name}": value for name, value in self.absent.items()},
            **self.further,
        }


@torch.no_grad()
def evaluate(network: nn.Module, split: Split, modalities: tuple[str, ...], batch_size: int = 256) -> Evaluation:
    """Evaluate a plain network (not wrapped in AGM) in eval mode; the modes are as before afterwards.

    Args:
        network: takes the modalities as keywords and returns (B, C) logits.
        split: on the network's device; samples that have none of the modalities are left out.
        modalities: those that the network takes, one or more.
        batch_size: samples a pass.
    """
    if tuple(split.inputs) != tuple(modalities):  # the columns of `present` are in that order
        split = split.select(modalities)
    count = len(modalities)
    totals = torch.zeros(2 + 2 * count, dtype=torch.float64, device=split.target.device)
    answers, joint = Answers(split.target), []
    with evaluation(network):
        for begin in range(0, len(split), batch_size):
            rows = slice(begin, begin + batch_size)
            target = split.target[rows]
            inputs = {name: split.inputs[name][rows] for name in modalities}
            present = None if split.present is None else split.present[rows]
            guesses = _guesses(network, inputs, present)
            right = answers.right(guesses, target).double()
            if present is not None:
                for place, having in enumerate(present.unbind(1), 1):
                    right[place] = answers.right(guesses[place : place + 1, having], target[having]).sum()
            totals += torch.cat([answers.losses(guesses[0], target).unsqueeze(0), right])
            joint.append(guesses[0])
    samples = torch.full_like(totals, len(split))
    if split.present is not None:
        samples[2 : 2 + count] = split.present.sum(0)
    loss, accuracy, *shares = (totals / samples).tolist()
    return Evaluation(
        samples=len(split),
        loss=loss,
        accuracy=accuracy,
        responses=dict(zip(modalities, shares[:count], strict=True)),
        absent=dict(zip(modalities, shares[count:], strict=True)) if count > 1 else {},
        further=further_figures(torch.cat(joint), split.target),
    )


def _guesses(network: nn.Module, inputs: dict[str, Tensor], present: Tensor | None) -> Tensor:
    """(1 + 2 M, B, C) logits: joint, each response, without each modality."""
    if len(inputs) == 1:
        joint: Tensor = network(**inputs)
        return joint.expand(3, -1, -1)  # one modality is its own response
    # (2**M - 1, B, C), row i of the subset with bitmask i + 1
    masked = masked_logits(network, inputs, present=present)
    without = [len(masked) - 1 - 2**m for m in range(len(inputs))]
    return torch.cat([masked[-1:], responses(masked).to(masked.dtype), masked[without]])
