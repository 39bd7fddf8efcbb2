"""The modulation by coefficients that are given, instead of those of the batch."""

import torch
from torch import Tensor

from agm.modulation import unfused
from agm.modulation.additive import AdditiveLogits, scale_additive
from agm.modulation.scaling import ScaleSubsets
from agm.ops import reference
from agm.shapley.sampling import SubsetSample

__all__ = ["modulate_by"]


def modulate_by(
    coefficients: Tensor,  # (M,) float64
    masked_logits: Tensor | AdditiveLogits,
    modalities: int,
    *,
    present: Tensor | None = None,  # (B, M)
    sample: SubsetSample | None = None,
    backend: str = "auto",
) -> Tensor:
    """The joint logits (B, ..., C), whose gradient goes into the masked logits as `agm.fused_modulate` sends it where
    its coefficients are these.

    Args:
        coefficients: kappa, a constant.
        masked_logits: (2**M - 1, B, ..., C), or (R, B, ..., C) of a sample of subsets, or the parts of a sum.
        modalities: M; a compiled graph may not know it from a shape.
        present, sample, backend: as there.
    """
    if isinstance(masked_logits, AdditiveLogits):
        return scale_additive(masked_logits, coefficients, present, backend)
    if present is not None:
        masked_logits = unfused.restricted(masked_logits, present, sample)
    if not masked_logits.requires_grad:
        return masked_logits[-1]
    with torch.no_grad():
        weights = unfused.row_weights(sample, modalities, masked_logits.device)
        scales = reference.subset_scales(coefficients, weights)
    logits: Tensor = ScaleSubsets.apply(masked_logits.flatten(1, -2), scales, backend)
    return logits.view(masked_logits.shape[1:])
