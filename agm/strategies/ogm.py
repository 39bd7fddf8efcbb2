"""On-the-fly gradient modulation, without and with noise."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common, Strategy

__all__ = ["OGM", "OGMGE"]


class OGM(Strategy):
    """OGM (Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022).

        s_m   = sum over the batch of softmax(u_m)_y
        rho_m = s_m / s_j                                     of two modalities; their equation 8
        k_m   = 1 - tanh(alpha * rho_m)  if rho_m > 1, else 1        equation 10

    and the gradient of every parameter of encoder m becomes `k_m * g`. The paper has two modalities; with more,
    rho_m is the mean of s_m / s_j over the others, as the same group's later OPM has it (Wei et al., TPAMI 2024).

    Departures of the released code: it scales the 4-D convolution weights alone, so that nothing happens to a
    transformer (`convolutions_only=True` is that); it modulates up to and including epoch 50 (`stop=51`); and under a
    fusion whose head does not split it takes the halves of the last layer's weights for those of the modalities,
    which `Parts.unimodal` does not.

    Args:
        network: see `Strategy`.
        alpha: >= 0. The authors search [0, 1] for each dataset and have no default; 0.3 is that of BalanceBenchmark.
        noise: generalisation enhancement: add N(0, (std(g) + 1e-8)^2) to each of these gradients, with the standard
            deviation of g before scaling.
        convolutions_only: scale 4-D parameters alone.
        common: see `Strategy`.
    """

    scales = True
    dense = True
    distributed = True

    def __init__(
        self,
        network: nn.Module,
        *,
        alpha: float = 0.3,
        noise: bool = False,
        convolutions_only: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.alpha = check_number("alpha", alpha)
        self.noise = check_flag("noise", noise)
        self.convolutions_only = check_flag("convolutions_only", convolutions_only)
        if self.noise and self.parts.wrapper is not None:
            raise ValueError(
                "Expected argument `network` to be trained by one process, but got a DistributedDataParallel: each "
                "process would draw noise of its own. Use noise=False (the strategy `ogm`)."
            )
        if self.noise and self.moments == "first":
            raise ValueError(
                "Expected no noise with moments='first', since noise is of the gradient, which enters both moments. "
                "Use noise=False (the strategy `ogm`)."
            )

    def modulate(self, batch: Batch) -> None:
        ratios = mean_ratios(batch.confidences)
        coefficients = torch.where(ratios > 1, 1 - torch.tanh(self.alpha * ratios), torch.ones_like(ratios))
        self.scale(coefficients, convolutions_only=self.convolutions_only, noise=self.noise)
        self.latest = {"ratio": ratios, "coefficient": coefficients}


class OGMGE(OGM):
    """OGM-GE: `OGM` with the noise that the paper calls generalisation enhancement, its full method.

    Args:
        network, alpha, noise, convolutions_only, common: see `OGM`.
    """

    distributed = False
    why_alone = "each process would draw noise of its own"

    def __init__(
        self,
        network: nn.Module,
        *,
        alpha: float = 0.3,
        noise: bool = True,
        convolutions_only: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, alpha=alpha, noise=noise, convolutions_only=convolutions_only, **common)


def mean_ratios(scores: Tensor) -> Tensor:  # (M,) -> (M,)
    """Of each modality, the mean of its score over each other's."""
    ratios = scores.unsqueeze(1) / scores.unsqueeze(0)
    return (ratios.sum(1) - ratios.diagonal()) / (len(scores) - 1)
