"""Multi-loss balancing."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.multi_loss import MultiLoss
from agm.strategies.strategy import Common

__all__ = ["MLB", "balance_by_confidence"]


class MLB(MultiLoss):
    """MLB (Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation", BMVC 2024).

        L    = CE(f, y) + sum_m CE(u_m, y)
        s_m  = mean over the batch of softmax(u_m)_y
        r_m  = mean over j != m of s_j, over s_m
        k_m  = 1 + (beta_m - 1) * tanh(alpha * (r_m - 1)),    beta_m = beta_max if r_m > 1, else 2

    so that 1 - tanh(alpha) < k_m < beta_max: a modality that is behind is accelerated, one ahead slowed down, and in
    balance nothing happens. The gradients of encoder m, of its own head where `heads` are given, and of what its
    feature meets in the fusion's linear layer, where that splits, are multiplied by k_m; no others are.

    Args:
        network: see `Strategy`.
        alpha: >= 0; 0.8 in the released settings of CREMA-D, AVE and MOSEI, 1.0 for UCF101.
        beta_max: largest acceleration, >= 1. Tuned for each dataset by the authors (10 on CREMA-D with ResNets; 1 on
            AVE, which only slows down); 2 is symmetric.
        weight: of the unimodal losses.
        common: see `Strategy`.
    """

    scales = True

    def __init__(
        self,
        network: nn.Module,
        *,
        alpha: float = 0.8,
        beta_max: float = 2.0,
        weight: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, weight=weight, **common)
        self.alpha = check_number("alpha", alpha)
        self.beta_max = check_number("beta_max", beta_max, least=1.0)

    def modulate(self, batch: Batch) -> None:
        ratios, coefficients = balance_by_confidence(batch.confidences, self.alpha, self.beta_max)
        self.scale(coefficients, heads=True)
        self.latest = {"ratio": ratios, "coefficient": coefficients}


def balance_by_confidence(confidences: Tensor, alpha: float, beta_max: float) -> tuple[Tensor, Tensor]:
    """The ratios r_m (M,) and coefficients k_m (M,) of `MLB`, from the confidences s_m (M,)."""
    ratios = _others_over_own(confidences)
    reach = torch.where(ratios > 1, beta_max - 1.0, 1.0)
    return ratios, 1 + reach * torch.tanh(alpha * (ratios - 1))


def _others_over_own(scores: Tensor) -> Tensor:  # (M,) -> (M,)
    return (scores.sum() - scores) / (len(scores) - 1) / scores
