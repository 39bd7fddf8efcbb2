"""On-the-fly prediction modulation."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.ogm import mean_ratios
from agm.strategies.parts import weighted
from agm.strategies.strategy import Common, Strategy

__all__ = ["OPM"]


class OPM(Strategy):
    """OPM (Wei et al., "On-the-fly Modulation for Balanced Multimodal Learning", TPAMI 2024): the modality that is
    ahead is dropped from samples, in the forward pass.

        s_m   = sum over the batch of softmax(u_m)_y
        rho_m = mean over j != m of s_m / s_j
        q_m   = min(q_base * (1 + lam * tanh(rho_m - 1)), 1)  if rho_m > 1, else 0
        h_m  <- h_m * k_m / (1 - theta),   k_m = 0 with probability q_m, else 1, for each sample,
                                           theta = sum_m D_m q_m / sum_m D_m,  D_m the size of a feature

    in a batch with probability `p_exe`; other batches are left as they are. The q_m of a batch are those that the batch
    before gave, from features of which nothing was dropped; the first batch has none. No sample loses all modalities:
    the one with the smallest s_m has q_m = 0.

    Departures of the released code: q_m is that of the batch itself; it begins at epoch 6 (`start=6`). It
    leaves samples without any modality out of the loss, of which there are none.

    Args:
        network: see `Strategy`.
        q_base: smallest probability of a drop, in [0, 1]; 0.5 in the released code for Kinetics-Sounds, 0.4 in
            BalanceBenchmark.
        lam: growth of the probability with the ratio, >= 0; 0.5 in the released code.
        p_exe: share of the batches in which features are dropped, in [0, 1]; 0.7 in the released code.
        common: see `Strategy`.

    Attributes:
        probabilities: (M,) float64, q_m for the next batch.

    Example:
        >>> strategy = OPM(network, q_base=0.5, start=6)
    """

    why_alone = "each process would drop features of its own draw"
    probabilities: Tensor
    sizes: Tensor  # (M,) float64, D_m, known after the first batch

    def __init__(
        self,
        network: nn.Module,
        *,
        q_base: float = 0.5,
        lam: float = 0.5,
        p_exe: float = 0.7,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.q_base = _probability("q_base", q_base)
        self.lam, self.p_exe = check_number("lam", lam), _probability("p_exe", p_exe)
        self.register_buffer("probabilities", torch.zeros(len(self.modalities), dtype=torch.float64))
        self.register_buffer("sizes", torch.zeros(len(self.modalities), dtype=torch.float64))

    def run(self, batch: Batch) -> tuple[dict[str, Any] | None, Tensor]:
        """Features before anything is dropped, from which the statistics are, and joint logits from what is left."""
        if not self.active:
            return super().run(batch)
        device = self.probabilities.device
        left = self.draws.uniform(1, device) >= self.p_exe
        share = (self.sizes * self.probabilities).sum() / self.sizes.sum().clamp_min(1.0)
        scale = torch.where(left, 1.0, 1 / (1 - share))
        whole: dict[str, Any] = {}
        sizes: dict[str, int] = {}

        def drop(name: str, feature: Any) -> Any:
            whole[name] = feature = self.feature(name, feature, batch)
            sizes[name] = _size(feature)
            probability = self.probabilities[self.modalities.index(name)]
            kept = self.draws.uniform(len(batch.shaped_target), device) >= probability
            return weighted(feature, (kept | left) * scale)

        _, logits = self.parts.run(batch.inputs, drop)
        for place, name in enumerate(self.modalities):
            self.sizes[place].fill_(sizes[name])
        return whole, logits

    def modulate(self, batch: Batch) -> None:
        ratios = mean_ratios(batch.confidences.double())
        raised = (self.q_base * (1 + self.lam * torch.tanh(ratios - 1))).clamp(max=1.0)
        self.latest = {"ratio": ratios, "coefficient": self.probabilities.clone()}
        self.probabilities.copy_(torch.where(ratios > 1, raised, 0.0))


def _size(feature: Any) -> int:
    """Numbers of one sample's feature."""
    leaves = [leaf for leaf in pytree.tree_leaves(feature) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return sum(leaf[0].numel() for leaf in leaves)


def _probability(name: str, value: Any) -> float:
    if check_number(name, value) > 1:
        raise ValueError(f"Expected argument `{name}` to be a probability from 0 to 1, but got {value!r}.")
    return float(value)
