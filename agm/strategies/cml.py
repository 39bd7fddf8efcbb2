"""Calibrating multimodal learning."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch, precise
from agm.strategies.strategy import Common, Strategy

__all__ = ["CML"]


class CML(Strategy):
    """CML (Ma et al., "Calibrating Multimodal Learning", ICML 2023): confidence must not rise when a modality is taken
    away.

        S_0 = all modalities, S_k = S_{k-1} without one drawn at random, down to S_{M-1} of one
        c_k = max over the classes of softmax f(S_k)
        L   = (1/M) sum_k CE(f(S_k), y) + weight * sum_k mean over the samples of n_k max(c_k - c_{k-1}, 0), k >= 1
        n_k = 0 where f(S_k) names the class and f(S_{k-1}) does not, else 1

    f(S) are the network's logits from the features of S and zeros for the others', in eval mode behind the encoders;
    those of S_0 are the joint logits. A modality whose removal makes a prediction right may raise the confidence.

    The released code has networks for features of many views, of which the formula for c and n is; the classification
    losses of all S_k, and late fusion, are BalanceBenchmark's. Departures of BalanceBenchmark: it sums c_k - c_{k-1}
    over the batch before it takes the maximum with 0, so that samples make up for each other, leaves n_k out, and draws
    one order an epoch. Both sum over the samples where a mean is here.

    Args:
        network: see `Strategy`.
        weight: of the rise in confidence, >= 0; 3.2, which is 0.1 of BalanceBenchmark on a sum over its batches of 32.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Example:
        >>> strategy = CML(network, weight=3.2)
    """

    why_alone = "each process would take away other modalities"

    def __init__(self, network: nn.Module, *, weight: float = 3.2, **common: Unpack[Common]) -> None:
        super().__init__(network, **common)
        self.weight = check_number("weight", weight)

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        # Drawn on the CPU: which passes are made must be known there.
        order = self.draws.permutation(len(self.modalities), torch.device("cpu")).tolist()
        chain, left = [batch.logits], list(self.modalities)
        for place in order[:-1]:
            left.remove(self.modalities[place])
            chain.append(self.parts.with_only(left, batch.inputs, batch.features))
        logits = torch.stack([precise(one) for one in chain])  # (M, B, C)
        losses = torch.stack([batch.joint_loss, *(self.criterion(one, batch.target) for one in chain[1:])])
        confidences, named = logits.softmax(-1).max(-1)
        right = named == batch.target
        counts = ~(right[1:] & ~right[:-1])
        rises = ((confidences[1:] - confidences[:-1]).relu() * counts).mean(1)
        self.latest = {"terms": torch.stack([losses.mean().detach(), rises.sum().detach()])}
        return losses.mean() + self.weight * rises.sum()
