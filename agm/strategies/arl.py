"""Asymmetric representation learning."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_count, check_number
from agm.strategies.batch import Batch, precise
from agm.strategies.strategy import Common, Strategy

__all__ = ["ARL"]


class ARL(Strategy):
    """ARL (Wei et al., "Improving Multimodal Learning via Imbalanced Learning", ICCV 2025): the network is to depend on
    each modality in inverse proportion to its variance, for which the entropy of its predictions stands.

        H_m = mean over the batch of the entropy of softmax(u_m), over the sum of all modalities'; at least 0.6 / M
        a_m = (1 / H_m) / sum_j (1 / H_j)
        d_m = mean over the batch of sum_c |u_mc|, over the sum of all modalities'
        w   = softmax over the modalities of temperature * a_m * (mean over j != m of d_j)
        k_m = 1 + w_m
        L   = CE(f, y) + gamma * sum_m CE(u_m, y)

    and the gradient of encoder m is multiplied by k_m. In the first `warmup` epochs of the window gamma is 1 and
    nothing is multiplied.

    What is ours: the mean over the others and 0.6 / M, which for two modalities are the other and the 0.3 of the
    released code. Departures of that code: w are those of the batch before. Its first state could not run (an
    exception behind the making of the network) and never used w, so that all gradients were multiplied by 1.5; its
    later states have both mended. It clips the norm of all gradients at 40, for which there is `agm train --clip-norm`.

    Args:
        network: see `Strategy`.
        gamma: weight of the unimodal losses after the warm-up, >= 0; 4 on CREMA-D, 3 on Kinetics-Sounds.
        temperature: T, >= 0; 8 on CREMA-D, 4 on Kinetics-Sounds.
        warmup: epochs before the first modulated one, >= 0; 6.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Example:
        >>> strategy = ARL(network, gamma=4.0, temperature=8.0)
    """

    scales = True
    why_alone = "it weighs the modalities by each process's own batch"

    def __init__(
        self,
        network: nn.Module,
        *,
        gamma: float = 4.0,
        temperature: float = 8.0,
        warmup: int = 6,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.gamma, self.temperature = check_number("gamma", gamma), check_number("temperature", temperature)
        self.warmup = check_count("warmup", warmup, least=0)

    @property
    def _warm(self) -> bool:
        return self.epoch - self.start >= self.warmup

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        losses = torch.stack([batch.unimodal_losses[name] for name in self.modalities])
        return batch.joint_loss + (self.gamma if self._warm else 1.0) * losses.sum()

    def modulate(self, batch: Batch) -> None:
        if not self._warm:
            self.latest = {}
            return
        logits = precise(torch.stack([batch.unimodal[name].detach() for name in self.modalities]))  # (M, B, C)
        logs = logits.log_softmax(-1)
        count = len(self.modalities)
        entropies = _shares(-(logs.exp() * logs).sum(-1).mean(1)).clamp_min(0.6 / count)
        dependences = _shares(logits.abs().sum(-1).mean(1))
        others = (1 - dependences) / (count - 1)
        weights = (self.temperature * _shares(1 / entropies) * others).softmax(0)
        coefficients = 1 + weights
        self.scale(coefficients)
        self.latest = {"score": entropies, "ratio": dependences, "coefficient": coefficients}


def _shares(values: Tensor) -> Tensor:  # (M,) >= 0 -> (M,) that sum to 1
    total = values.sum()
    return torch.where(total > 0, values / total, 1 / len(values))
