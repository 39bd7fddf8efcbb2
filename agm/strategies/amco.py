"""Adaptive mask co-optimization."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.strategies._checks import check_fraction, check_number
from agm.strategies.batch import Batch, precise
from agm.strategies.measuring import Batches
from agm.strategies.multi_loss import MultiLoss
from agm.strategies.strategy import Common

__all__ = ["AMCo"]

_LARGEST = 10.0  # of the scale that makes up for masked numbers, as in BalanceBenchmark


class AMCo(MultiLoss):
    """AMCo (Zhou et al., "Adaptive Mask Co-optimization for Modal Dependence in Multimodal Learning", ICASSP 2023): a
    growing part of the feature is masked of the modality that the network depends on.

        p_m = mean over the batch of sum_c softmax([u_1, ..., u_M])_mc        the share of m in all M C logits
        h_m <- h_m * mask / max(1 - pt, 0.1),   mask with int(pt * D) zeros of D, one a batch
        pt  = sin(pi/2 * min(l, eps) / eps),    l = rate * e * t    in batch t = 0, 1, ... of epoch e of the window
        L   = CE(f, y) + weight * sum_m CE(u_m, y)

    A modality with p_m >= sigma is dependent in all later batches of the epoch, and the first dependent one, in their
    order, is masked. u_m are of the masked feature.

    Source: BalanceBenchmark's trainer, since of the paper only the abstract was found, and no code. At its settings the
    mask is whole from the third batch of epoch 1 on: l grows by a tenth of the epoch's number each batch, and eps is
    reached at once. A smaller `rate` or a larger `eps` spreads it over an epoch. There the window is epochs 10 to 80.

    Args:
        network: see `Strategy`.
        sigma: the share from which a modality is dependent, above 0 and at most 1; 0.5.
        eps: l at which the mask is whole, > 0; 0.3.
        rate: of l, >= 0; 0.1.
        weight: of the unimodal losses; 1.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Example:
        >>> strategy = AMCo(network, start=10)
    """

    dense = False
    distributed = False
    why_alone = "each process would mask what its own batches depend on"
    tasks = frozenset({"classes"})
    dependent: Tensor  # (M,) bool

    def __init__(
        self,
        network: nn.Module,
        *,
        sigma: float = 0.5,
        eps: float = 0.3,
        rate: float = 0.1,
        weight: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, weight=weight, **common)
        self.sigma = check_fraction("sigma", sigma)
        self.eps, self.rate = check_number("eps", eps), check_number("rate", rate)
        if not self.eps:
            raise ValueError(f"Expected argument `eps` to be above 0, but got {eps!r}.")
        self.register_buffer("dependent", torch.zeros(len(self.modalities), dtype=torch.bool))
        self._batches = 0  # of the epoch

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        self.dependent.zero_()
        self._batches = 0

    def feature(self, name: str, feature: Any, batch: Batch) -> Any:
        feature = super().feature(name, feature, batch)
        share = self._share()
        if not self.active or not share:
            return feature
        masked = _first(self.dependent)[self.modalities.index(name)]

        def mask(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            width = leaf.shape[-1]
            kept = self.draws.permutation(width, leaf.device) >= int(share * width)
            scaled = kept.to(leaf.dtype) * min(1 / max(1 - share, 1e-9), _LARGEST)
            return leaf * torch.where(masked, scaled, 1.0)

        return pytree.tree_map(mask, feature)

    def modulate(self, batch: Batch) -> None:
        logits = precise(torch.cat([batch.unimodal[name].detach() for name in self.modalities], 1))
        shares = logits.softmax(1).unflatten(1, (len(self.modalities), -1)).sum(2).mean(0)
        self.dependent |= _first(shares >= self.sigma)
        self._batches += 1
        self.latest = {"score": shares, "coefficient": self.dependent.to(shares.dtype)}

    def get_extra_state(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._batches = int(state["batches"])

    def _share(self) -> float:
        level = self.rate * (self.epoch - self.start) * self._batches
        return math.sin(math.pi / 2 * min(level, self.eps) / self.eps)


def _first(flags: Tensor) -> Tensor:  # (M,) bool -> (M,) bool
    """The first of those that are set, alone."""
    return flags & (flags.cumsum(0) == 1)
