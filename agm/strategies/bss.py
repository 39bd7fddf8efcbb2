"""Balance-aware sequence sampling."""

from __future__ import annotations

import math
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_choice, check_count, check_fraction
from agm.strategies.measuring import Batches, by_number
from agm.strategies.multi_loss import MultiLoss
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common, Draw

__all__ = ["BSS"]


class BSS(MultiLoss):
    """BSS (Guan et al., "Balance-aware Sequence Sampling Makes Multi-modal Learning Better", IJCAI 2025): balanced
    samples first.

        score(x) = norm(max over pairs of modalities of cos(p_i, p_j)) - norm(L(x))

    p_m the prediction of modality m alone, L(x) the sample's multi-loss `CE(f, y) + weight * sum_m CE(u_m, y)`, and
    norm the scaling to [0, 1] by the minimum and maximum over the training set, in eval mode, every `every` epochs.

        heuristic: the samples of the highest scores, a share of them that grows to 1
        learned:   as many samples as there are, drawn with replacement with probability proportional to exp(score)

    What is ours: that the similarity is one of predictions; and the share, which grows linearly from `first` in the
    first epoch of the window to 1 after `growth` epochs (the paper's pacing function is not known).

    Args:
        network: see `Strategy`.
        schedule: "heuristic" or "learned".
        every: epochs between two scorings.
        first: share of the samples in the first epoch, above 0 and at most 1.
        growth: epochs until all samples are used.
        weight: of the unimodal losses; 1.
        common: see `Strategy`.

    Attributes:
        sample_scores: (N,) float64 by the number of the sample; None before the first scoring.

    Example:
        >>> strategy = BSS(network, growth=20)
        >>> strategy.begin_epoch(0, train=numbered_loader)   # of (inputs, target, index)
        >>> draw = strategy.draw(torch.randperm(samples))
    """

    needs = frozenset({"train", "index"})
    dense = False
    distributed = False
    why_alone = "it draws the samples of an epoch, each process others"

    def __init__(
        self,
        network: nn.Module,
        *,
        schedule: Literal["heuristic", "learned"] = "heuristic",
        every: int = 1,
        first: float = 0.5,
        growth: int = 20,
        weight: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, weight=weight, **common)
        self.schedule = check_choice("schedule", schedule, ("heuristic", "learned"))
        self.every, self.growth = check_count("every", every), check_count("growth", growth)
        self.first = check_fraction("first", first)
        self.sample_scores: Tensor | None = None

    @torch.no_grad()
    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        if self.active and (epoch - self.start) % self.every == 0:
            self.sample_scores = self._scored(self.required(train, "train"))

    def draw(self, order: Tensor) -> Draw:
        if not self.active or self.sample_scores is None:
            return Draw(order)
        scores = self.sample_scores.to(order.device)
        if self.schedule == "learned":
            return Draw(self.draws.by_weight(scores.exp(), len(order)))
        share = min(self.first + (1 - self.first) * (self.epoch - self.start) / self.growth, 1.0)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.argsort(descending=True)[: max(math.ceil(share * len(scores)), 1)]] = True
        return Draw(order[kept[order]])

    def _scored(self, train: Batches) -> Tensor:
        def both(inputs: Any, target: Tensor) -> Tensor:  # -> (B, 2) similarity and loss
            with evaluation(self.network):
                features, joint = self.parts.run(inputs)
                alone = self.parts.unimodal(inputs, features)
            shares = [F.normalize(alone[name].softmax(-1), dim=1) for name in self.modalities]
            pairs = [(a * b).sum(1) for place, a in enumerate(shares) for b in shares[place + 1 :]]
            losses = [F.cross_entropy(logits, target, reduction="none") for logits in (joint, *alone.values())]
            total = losses[0] + self.weight * torch.stack(losses[1:]).sum(0)
            return torch.stack([torch.stack(pairs).amax(0), total], 1).double()

        values = by_number(train, both)
        low, high = values.amin(0), values.amax(0)
        scaled = (values - low) / torch.where(high > low, high - low, 1.0)
        return scaled[:, 0] - scaled[:, 1]

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.sample_scores is None else {"scores": self.sample_scores}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.sample_scores = state.get("scores")
