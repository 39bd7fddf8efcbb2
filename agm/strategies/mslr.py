"""Modality-specific learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_count, check_flag, check_per_modality
from agm.strategies.batch import Batch
from agm.strategies.measuring import Batches
from agm.strategies.strategy import Common, Strategy

__all__ = ["MSLR"]


class MSLR(Strategy):
    """MSLR (Yao and Mihalcea, "Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion",
    Findings of ACL 2022), in its dynamic form as re-implemented for AGM (Li et al., ICCV 2023) and MLB.

        k_m = initial_m * a_m / mean of the `window` validation accuracies of m before a_m

    a_m being the validation accuracy of modality m alone after the last epoch; k_m = initial_m while there are no
    `window` accuracies before it. The gradients of encoder m are multiplied by k_m, which under plain SGD is a
    learning rate of its own. An accuracy mean of 0 leaves k_m = initial_m.

    Args:
        network: see `Strategy`.
        initial: modality -> factor; 1 by default. AGM's baselines: 1.3 / 0.7 on AV-MNIST and 0.9 / 1.1 on CREMA-D
            (audio / visual), 0.9 / 1.4 / 0.7 on UR-Funny (audio / visual / text).
        window: accuracies in the mean.
        heads_too: also scale what only this modality's feature meets behind its encoder: its columns of a common layer,
            or a layer of its own with its bias, as the baselines of AGM do.
        common: see `Strategy`.
    """

    scales = True
    dense = True
    distributed = True

    needs = frozenset({"validation"})
    initial: Tensor  # (M,) float64
    history: Tensor  # (window + 1, M) float64, the last row newest
    count: Tensor  # () int64, epochs measured
    coefficients: Tensor  # (M,) float64

    def __init__(
        self,
        network: nn.Module,
        *,
        initial: Mapping[str, float] | None = None,
        window: int = 5,
        heads_too: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        factors = check_per_modality("initial", initial, self.modalities)
        self.window = check_count("window", window)
        self.heads_too = check_flag("heads_too", heads_too)
        self.register_buffer("initial", torch.tensor(factors, dtype=torch.float64), persistent=False)
        self.register_buffer("history", torch.zeros(self.window + 1, len(factors), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("coefficients", torch.tensor(factors, dtype=torch.float64))

    def modulate(self, batch: Batch) -> None:
        self.scale(self.coefficients, heads=self.heads_too)
        self.latest = {"coefficient": self.coefficients}

    @torch.no_grad()
    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        accuracies = self.measure(self.required(validation, "validation")).accuracies
        newest = self.history.new_tensor([accuracies[name] for name in self.modalities])
        self.history.copy_(torch.cat([self.history[1:], newest.unsqueeze(0)]))
        self.count.add_(1)
        mean = self.history[:-1].mean(0)
        known = (self.count > self.window) & (mean > 0)
        ratio = torch.where(known, newest / torch.where(mean > 0, mean, 1.0), 1.0)
        self.coefficients.copy_(self.initial * ratio)
