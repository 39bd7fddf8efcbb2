"""Adaptively masking subnetworks."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_choice, check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.heads import pooled
from agm.strategies.strategy import Common, Strategy

__all__ = ["AMSS", "AMSSPlus"]


class AMSS(Strategy):
    """AMSS (Yang et al., "Adaptively Masking Subnetworks for Multimodal Learning", TPAMI 2025).

        I_m = (H(Y) - CE(u_m, y)) / H_m,  H(Y) the entropy of the batch's classes, H_m the mean entropy of softmax(h_m)
        s_m <- momentum * s_m + (1 - momentum) * I_m                       s_m = I_m in the first step
        c_m = 1 - softmax_m(s / temperature)

    and of every weight of encoder m with n units (filters, neurons: its first axis) only ceil(n c_m) keep their
    gradient: a modality that is ahead trains fewer. They are drawn without replacement, with probability proportional
    to the squared gradient of the unit. Biases, norms and all that is outside the encoders are not masked. Momentum
    and weight decay of the optimizer go on moving what is masked.

    Departures of the released code (`released=True`). Of two modalities (its audio-video script): the classes'
    "entropy" is -sum q log softmax(q) over the classes up to the highest of the batch, in float32; I_m has 0.5 more in
    its numerator, and if one is <= 0 both c are 1/2; no momentum; c within [0.1, 0.9]. Of three (its NVGesture
    script): entropies in bits, that of features summed and divided by 40, 3 more in the numerator, and 1/2 where one
    is <= -2. It masks convolutions alone (`convolutions_only`).

    Args:
        network: see `Strategy`.
        temperature: < 1; 0.2 on audio-video data, 0.5 on text and image.
        momentum: of the significance s_m, in [0, 1); 0.5, ours: the paper's is not known.
        choice: "draw", or "top": the ceil(n c_m) units of the largest gradient.
        weighting: how a kept unit of importance p (they sum to 1) is weighted. "none": as it is. "inverse":
            1 / (p + 1/n), the released AMSS+, which is n/2 for equal units. "normalised": that over n/2; ours.
        convolutions_only: mask 4-D weights alone.
        released: as the released code.
        common: see `Strategy`.

    Raises:
        ValueError: released with more than three modalities.

    Example:
        >>> strategy = AMSS(network, temperature=0.2)
    """

    significance: Tensor  # (M,) float64, s_m
    count: Tensor  # () int64, steps

    def __init__(
        self,
        network: nn.Module,
        *,
        temperature: float = 0.2,
        momentum: float = 0.5,
        choice: Literal["draw", "top"] = "draw",
        weighting: Literal["none", "inverse", "normalised"] = "none",
        convolutions_only: bool = False,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.temperature = check_number("temperature", temperature)
        self.momentum = check_number("momentum", momentum, below=1)
        self.choice = check_choice("choice", choice, ("draw", "top"))
        self.weighting = check_choice("weighting", weighting, ("none", "inverse", "normalised"))
        self.convolutions_only = check_flag("convolutions_only", convolutions_only)
        self.released = check_flag("released", released)
        if self.released and len(self.modalities) > 3:
            raise ValueError(
                f"Expected two or three modalities for the released coefficients, but got {len(self.modalities)}. "
                "Leave `released` out."
            )
        self.register_buffer("significance", torch.zeros(len(self.modalities), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def modulate(self, batch: Batch) -> None:
        if not self.released:
            coefficients, ratios = self._coefficients(batch)
        else:
            coefficients, ratios = (_released_two if len(self.modalities) == 2 else _released_three)(
                batch, self.temperature
            )
        for share, parameters in zip(coefficients, self.parts.parameters(self.convolutions_only), strict=True):
            for parameter in parameters:
                if parameter.grad is not None and parameter.dim() > 1:
                    self._mask(parameter.grad, share)
        self.latest = {"coefficient": coefficients, "ratio": ratios}

    def _coefficients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        frequencies = batch.one_hot.double().mean(0)
        labels = torch.special.entr(frequencies).sum()
        rates = (labels - batch.cross_entropies.double()) / _feature_entropies(batch).double()
        keep = torch.where(self.count > 0, self.momentum, 0.0)
        self.significance.copy_(keep * self.significance + (1 - keep) * rates)
        self.count.add_(1)
        return 1 - (self.significance / self.temperature).softmax(0), rates

    def _mask(self, gradient: Tensor, share: Tensor) -> None:
        """Keeps ceil(n share) of the n units of one gradient, in place."""
        units = len(gradient)
        squares = gradient.flatten(1).square().sum(1)
        importance = squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
        order = importance.argsort(descending=True) if self.choice == "top" else self.draws.order_by_weight(importance)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(units, device=order.device))
        factors = (places < (units * share).ceil()).to(gradient.dtype)
        if self.weighting != "none":
            factors = factors / (importance + 1 / units)
        if self.weighting == "normalised":
            factors = factors * (2 / units)
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


class AMSSPlus(AMSS):
    """AMSS+: `AMSS` whose kept units are weighted against the probability with which they are drawn.

    Args:
        network, temperature, momentum, choice, weighting, convolutions_only, released, common: see `AMSS`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        temperature: float = 0.2,
        momentum: float = 0.5,
        choice: Literal["draw", "top"] = "draw",
        weighting: Literal["none", "inverse", "normalised"] = "normalised",
        convolutions_only: bool = False,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            network,
            temperature=temperature,
            momentum=momentum,
            choice=choice,
            weighting=weighting,
            convolutions_only=convolutions_only,
            released=released,
            **common,
        )


def _feature_entropies(batch: Batch) -> Tensor:
    """(M,) mean over the batch of the entropy of the softmax over a feature, in nats."""
    rows = []
    for name in batch.parts.modalities:
        logs = pooled(batch.features[name]).log_softmax(-1)
        rows.append(-(logs.exp() * logs).sum(-1).mean())
    return torch.stack(rows).detach()


def _counts(batch: Batch) -> tuple[Tensor, Tensor]:
    """(C,) float32 frequencies, and (C,) whether a class is not above the highest of the batch."""
    frequencies = batch.one_hot.sum(0).float() / len(batch.target)
    return frequencies, torch.arange(len(frequencies), device=frequencies.device) <= batch.target.max()


def _released_two(batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    frequencies, known = _counts(batch)
    logs = frequencies.masked_fill(~known, -math.inf).log_softmax(0)
    labels = -torch.where(known, frequencies * logs, 0.0).sum()
    gained = -batch.cross_entropies + labels + 0.5
    even = (gained <= 0).any()
    ratios = torch.where(even, 1.0, gained / _feature_entropies(batch))
    coefficients = (ratios.flip(0) / temperature).softmax(0).clamp(0.1, 0.9)
    return torch.where(even, 0.5, coefficients), ratios


def _released_three(batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    frequencies, known = _counts(batch)
    labels = -torch.where(known, frequencies * (frequencies + 1e-10).log2(), 0.0).sum()
    rows = []
    for name in batch.parts.modalities:
        shares = pooled(batch.features[name]).softmax(-1)
        rows.append(-(shares * (shares + 1e-10).log2()).sum() / 40)
    gained = -batch.cross_entropies + labels
    even = (gained[:2] + 2 <= 0).any() | (gained[2] + 2 < 0)
    ratios = (gained + 3) / torch.stack(rows).detach()
    powers = (ratios / temperature).exp()
    coefficients = (1 - powers / powers.sum()).clamp(0.1, 0.9).nan_to_num(0.5)
    return torch.where(even, 0.5, coefficients), ratios
