"""Unimodal losses and a divergence between what the modalities predict."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.multi_loss import MultiLoss
from agm.strategies.strategy import Common

__all__ = ["HybridLoss"]


class HybridLoss(MultiLoss):
    """The hybrid loss of AVERFormer (Sun et al., "AVERFormer: End-to-end audio-visual emotion recognition transformer
    framework with balanced modal contributions", Digital Signal Processing 2025), as far as its abstract tells.

        L    = CE(f, y) + weight * sum_m CE(u_m, y) + divergence * mean over the samples of |D(x) - margin|
        D(x) = mean over pairs of modalities of (KL(p_i || p_j) + KL(p_j || p_i)) / 2,      p_m = softmax(u_m)

    What is known is that there are audio-visual and unimodal classification losses and a combined divergence that is to
    balance similarity and difference of the modalities. What is ours: which divergence, that it is held at `margin`,
    and all three numbers. A margin of 0 asks for predictions that are alike.

    Args:
        network: see `Strategy`; `agm.models.averformer.averformer` is one.
        weight: of the unimodal losses, >= 0.
        divergence: weight of the divergence, >= 0.
        margin: of the divergence, in nats, >= 0.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Example:
        >>> strategy = HybridLoss(network, heads=linear_heads(network.widths, 6), divergence=0.1)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        weight: float = 1.0,
        divergence: float = 0.1,
        margin: float = 0.1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, weight=weight, **common)
        self.divergence, self.margin = check_number("divergence", divergence), check_number("margin", margin)
        if len(self.modalities) < 2:
            raise ValueError(f"Expected two modalities or more, whose predictions diverge, but got {self.modalities}.")

    def loss(self, batch: Batch) -> Tensor:
        total = super().loss(batch)
        if not self.active:
            return total
        apart = batch.mean((self._divergences(batch) - self.margin).abs().unsqueeze(0)).squeeze(0)
        return total + self.divergence * apart

    def _divergences(self, batch: Batch) -> Tensor:  # (N,)
        logs = [batch.unimodal[name].log_softmax(-1) for name in self.modalities]
        pairs = [(p, q) for place, p in enumerate(logs) for q in logs[place + 1 :]]
        both = [
            F.kl_div(q, p, reduction="none", log_target=True) + F.kl_div(p, q, reduction="none", log_target=True)
            for p, q in pairs
        ]
        return torch.stack(both).sum(-1).mean(0) / 2
