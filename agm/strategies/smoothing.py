"""A modulation whose coefficients are smoothed over the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agm.modulation.additive import AdditiveLogits
from agm.modulation.given import modulate_by
from agm.modulation.modulator import Modulator
from agm.shapley.sampling import SubsetSample

__all__ = ["SmoothedModulator"]


class SmoothedModulator(Modulator):
    """`agm.Modulator` with an exponential moving average of the coefficients in the place of each step's own.

        mean_m <- smoothing * mean_m + (1 - smoothing) * kappa_m,     mean_m = 1 before the first step

    and mean_m scales the gradient. A single batch whose responses differ much from the others then moves the update
    by a share `1 - smoothing` of what it would. Not part of the published method.

    Args:
        modalities, settings: as of `agm.Modulator`.
        smoothing: in [0, 1); 0 is the published method.

    Attributes:
        smoothed: (M,) float64, mean_m; in the state dict.
    """

    smoothed: Tensor
    _by_modality = (*Modulator._by_modality, "smoothed")

    def __init__(self, modalities: tuple[str, ...], *, smoothing: float, **settings: Any) -> None:
        super().__init__(modalities, **settings)
        self.smoothing = smoothing
        self.register_buffer("smoothed", torch.ones(len(self.modalities), dtype=torch.float64))

    def forward(
        self,
        masked_logits: Tensor | AdditiveLogits,
        target: Tensor | None = None,
        *,
        present: Tensor | None = None,
        sample: SubsetSample | None = None,
    ) -> Tensor:
        """Joint logits (B, ..., C), as `agm.Modulator`."""
        if not self.active:
            return super().forward(masked_logits, target, present=present, sample=sample)
        super().forward(masked_logits.detach(), target, present=present, sample=sample)
        if self.held is None:
            with torch.no_grad():
                self.smoothed.lerp_(self.state.coefficients, 1 - self.smoothing)
        coefficients = self.smoothed.clone()  # the next step writes to it, perhaps before this one's backward
        count = len(self.modalities)
        return modulate_by(coefficients, masked_logits, count, present=present, sample=sample, backend=self.backend)
