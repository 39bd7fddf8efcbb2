"""Multimodal balanced self-distillation."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from agm.strategies.batch import Batch
from agm.strategies.strategy import Strategy

__all__ = ["MBSD"]


class MBSD(Strategy):
    """MBSD, multimodal balanced self-distillation, as in BalanceBenchmark's code (Xu et al.,
    arXiv 2502.10816).

        L    = CE(f, y) + sum_m CE(u_m, y) + mean over pairs (m, j) of the mean over the batch of w (R + D)
        w    = |p_m - p_j| where one of the two is right, else 0         p_m = softmax(u_m)_y
        R    = mean over the classes of (u_m - u_j)^2;  with more than two modalities of (softmax u_m - softmax u_j)^2
        D    = b log b - b a,    a = max(p_m, p_j),  b = min(p_m, p_j)

    u_m are the logits of modality m alone. Samples on which two modalities differ most, one of them being right, pull
    them together. Nothing is detached: w has a gradient too.

    D is the code's `F.kl_div(a, b)`, which stands as it is: that function takes the logarithm of its first argument for
    granted, which a is not. The method's own paper was not at hand, so that what D is there is not known.

    Args:
        network: see `Strategy`.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Example:
        >>> strategy = MBSD(network)
    """

    trains_heads = True

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        logits = torch.stack([batch.unimodal[name] for name in self.modalities])  # (M, B, C)
        alone = torch.stack([batch.unimodal_losses[name] for name in self.modalities]).sum()
        probabilities = logits.softmax(-1)
        true = probabilities.gather(2, batch.target.expand(len(logits), -1).unsqueeze(2)).squeeze(2)  # (M, B)
        right = logits.argmax(-1) == batch.target
        compared = logits if len(logits) == 2 else probabilities
        pairs = []
        for one, other in combinations(range(len(logits)), 2):
            strong, weak = torch.maximum(true[one], true[other]), torch.minimum(true[one], true[other])
            weights = torch.where(right[one] | right[other], strong - weak, 0.0)
            distances = (compared[one] - compared[other]).square().mean(-1)
            pairs.append((weights * (distances + torch.special.xlogy(weak, weak) - weak * strong)).mean())
        self.latest = {"score": true.detach().mean(1)}
        return batch.joint_loss + alone + torch.stack(pairs).mean()
