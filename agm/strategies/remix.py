"""Data remixing."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_count, check_number
from agm.strategies.batch import Batch
from agm.strategies.measuring import Batches, by_number
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common, Draw, Strategy

__all__ = ["Remix"]


class Remix(Strategy):
    """Data Remixing (Ma et al., "Improving Multimodal Learning Balance and Sufficiency through Data Remixing", ICML
    2025): every sample trains the modality that is least certain of it, in batches of one modality each.

        first `warmup` epochs of the window:  L = CE(f, y) + warmup_weight * sum_m CE(u_m, y)
        then, before each epoch, in eval mode over the training set:
            m(x) = argmin_m KL(softmax(u_m) || uniform)
        and the epoch has the samples of the first modality, then those of the second, ...:
            L    = CE(f, y) + weight * CE(u_m, y),    features of the modalities other than m(x) being 0

    A modality is dropped by zeros behind its encoder, whose batch norm still sees the sample. No sample comes twice.

    Departures of the released code: it trains the visual samples first, then the acoustic ones; and u_m are from linear
    heads beside the joint one, as `heads=linear_heads(...)` are here. It has two modalities, and so has the paper; with
    more, the least certain one has the sample. Ours: where a modality has a single sample, its batch has samples of the
    next one too, since batch norm takes no batch of one.

    Args:
        network: see `Strategy`.
        warmup: epochs before the first remixed one, >= 0; 10.
        warmup_weight: of the unimodal losses in them, >= 0; 0.5.
        weight: of the unimodal loss afterwards, >= 0; 1.
        common: see `Strategy`. Outside the window the loss is the joint one. A loop of your own takes the samples from
            `draw`; a batch without `present` has the loss of the warm-up.

    Attributes:
        assigned: (N,) int64, the place of m(x), by the number of the sample; None in epochs that are not remixed.

    Example:
        >>> strategy = Remix(network, heads=linear_heads(network.widths, 6))
        >>> strategy.begin_epoch(10, train=numbered_loader)   # of (inputs, target, index)
        >>> draw = strategy.draw(torch.randperm(samples))     # no batch should cross `draw.cuts`
    """

    needs = frozenset({"train", "index"})
    trains_heads = True
    why_alone = "it draws the samples of an epoch, each process others"

    def __init__(
        self,
        network: nn.Module,
        *,
        warmup: int = 10,
        warmup_weight: float = 0.5,
        weight: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.warmup = check_count("warmup", warmup, least=0)
        self.warmup_weight, self.weight = check_number("warmup_weight", warmup_weight), check_number("weight", weight)
        self.assigned: Tensor | None = None

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        remixed = self.active and epoch - self.start >= self.warmup
        self.assigned = self._assigned(self.required(train, "train")) if remixed else None

    def draw(self, order: Tensor) -> Draw:
        if self.assigned is None:
            return Draw(order)
        count = len(self.modalities)
        own, places = self.assigned.to(order.device)[order].sort(stable=True)
        cuts, begun, end = [], 0, 0
        for samples in own.bincount(minlength=count).tolist()[:-1]:
            end += samples
            if end - begun > 1 and len(order) - end > 1:
                cuts.append(end)
                begun = end
        return Draw(order[places], F.one_hot(own, count).bool(), tuple(cuts))

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        if self.assigned is None or batch.present is None:
            losses = torch.stack([batch.unimodal_losses[name] for name in self.modalities])
            return batch.joint_loss + self.warmup_weight * losses.sum()
        logits = torch.stack([batch.unimodal[name] for name in self.modalities], 1)  # (B, M, C)
        own = torch.where(batch.present.unsqueeze(2), logits, 0.0).sum(1)
        return batch.joint_loss + self.weight * self.criterion(own, batch.target)

    @torch.no_grad()
    def _assigned(self, train: Batches) -> Tensor:
        def least_certain(inputs: Any, target: Tensor) -> Tensor:
            with evaluation(self.network):
                features, _ = self.parts.run(inputs)
                alone = self.parts.unimodal(inputs, features)
            logs = torch.stack([alone[name] for name in self.modalities]).log_softmax(-1)
            # KL to the uniform distribution, but for the logarithm of the number of classes.
            return (logs.exp() * logs).sum(-1).argmin(0)

        return by_number(train, least_certain)
