"""Data-aware unimodal sampling, its heuristic."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_fraction, check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common, Strategy

__all__ = ["DUS"]


class DUS(Strategy):
    """DUS ("Rebalancing Multi-Modal Learning via Data-aware Unimodal Sampling", arXiv 2503.03792), the heuristic as far
    as it is known: modalities of lower confidence train on more samples.

        s_m  = mean over the batch of softmax(u_m)_y
        S_m <- ((t - 1) / t) S_m + s_m / t                in step t = 1, 2, ...
        L    = CE(f, y) + weight * sum_m (M / T) * (sum over n_m samples of the batch of CE(u_m, y))

    What is ours, since the paper's was not found: the mapping `n_m = T (1 - S_m) / sum_j (1 - S_j)`, rounded and kept
    within 1 and the batch's B, with `T = share * M * B` samples in all; that the n_m samples are the first of the
    (shuffled) batch; and M / T, by which equal n_m make means. The learned policy of the paper is not offered. Batches
    there are unpaired; here all encoders see all samples, and n_m of them count in the loss of modality m.

    Args:
        network: see `Strategy`.
        share: T over all samples of all modalities, above 0 and at most 1; 0.5, ours.
        weight: of the unimodal losses; 1, ours.
        common: see `Strategy`. Outside the window the loss is the joint one. `criterion` is that of the joint loss; the
            unimodal ones are cross-entropies, sample by sample.

    Example:
        >>> strategy = DUS(network)
    """

    trains_heads = True
    why_alone = "it takes the first samples of a batch, of which each process has its own"
    confidence: Tensor  # (M,) float64, S_m
    count: Tensor  # () int64, t

    def __init__(
        self, network: nn.Module, *, share: float = 0.5, weight: float = 1.0, **common: Unpack[Common]
    ) -> None:
        super().__init__(network, **common)
        self.share, self.weight = check_fraction("share", share), check_number("weight", weight)
        self.register_buffer("confidence", torch.zeros(len(self.modalities), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        with torch.no_grad():
            self.count.add_(1)
            self.confidence.lerp_(batch.confidences.double(), (1 / self.count).double())
            modalities, samples = len(self.modalities), len(batch.target)
            total = self.share * modalities * samples
            room = (1 - self.confidence).clamp_min(torch.finfo(torch.float64).tiny)
            numbers = (total * room / room.sum()).round().clamp(1, samples)
        logits = torch.stack([batch.unimodal[name] for name in self.modalities])  # (M, B, C)
        target = batch.target.expand(modalities, -1)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(modalities, samples)
        counts = torch.arange(samples, device=losses.device) < numbers.unsqueeze(1)
        self.latest = {
            "score": self.confidence.clone(),
            "coefficient": numbers * modalities / total,
            "samples": numbers,
        }
        return batch.joint_loss + self.weight * modalities / total * (losses * counts).sum()
