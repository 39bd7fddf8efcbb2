"""Scaled gradients of all subsets in the place of the joint logits' own."""

from typing import Any

import torch
from torch import Tensor

from agm import ops
from agm.ops._derivatives import once_differentiable

__all__ = ["ScaleSubsets"]


class ScaleSubsets(torch.autograd.Function):
    """The joint logits forward; backward, c_S times their gradient into every subset's logits.

    Applied to masked logits (R, B, C), the joint ones last, the scales c_S (R,) and the name of a backend.
    """

    @staticmethod
    def forward(ctx: Any, masked_logits: Tensor, subset_scales: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(subset_scales)
        ctx.backend = backend
        return masked_logits[-1]

    @staticmethod
    @once_differentiable(
        "fused_modulate",
        "For a gradient penalty take the joint logits masked_logits[-1], whose gradient is not modulated.",
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (subset_scales,) = ctx.saved_tensors
        return ops.modulate_backward(grad, subset_scales, backend=ctx.backend), None, None
