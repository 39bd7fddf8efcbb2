"""Whether numbers are equal but for the order in which they were summed."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._inputs.absent import is_opaque

__all__ = ["close", "close_logits"]

# What equal numbers may differ by, relative to the largest: kernels sum in another order for other numbers of rows.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
_COARSE = 3e-2
_RULED_OUT = 1000  # times what 19 of 20 exceed: by the rounding of such numbers no others differ


@torch.no_grad()
def close(left: Any, right: Any) -> bool:
    """Whether pytrees are equal to rounding."""
    leaves, structure = pytree.tree_flatten(left)
    others, other = pytree.tree_flatten(right)
    return structure == other and all(_is_close(a, b) for a, b in zip(leaves, others, strict=True))


@torch.no_grad()
def close_logits(left: Tensor, right: Tensor) -> bool:
    """Whether logits are equal to rounding, of which some may be ruled out by far larger numbers (masks)."""
    if left.shape != right.shape or left.dtype != right.dtype or not left.is_floating_point():
        return close(left, right)
    size = torch.maximum(left.abs(), right.abs()).nan_to_num(0.0, 0.0, 0.0)
    some = size[size > 0]
    if not some.numel():
        return close(left, right)
    small = some.float().kthvalue(1 + len(some) // 20).values
    ordinary = some[some <= _RULED_OUT * small].amax()
    within = (left - right).abs() <= _ROUNDING.get(left.dtype, _COARSE) * torch.maximum(size, ordinary)
    return bool((within | (left == right) | (left.isnan() & right.isnan())).all())


def _is_close(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and not is_opaque(left) and bool(left == right)
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point() and not left.is_complex():
        return torch.equal(left, right)
    scale = float(left.abs().nan_to_num(0.0, 0.0, 0.0).amax()) if left.numel() else 0.0
    return torch.allclose(left, right, rtol=0.0, atol=_ROUNDING.get(left.dtype, _COARSE) * scale, equal_nan=True)
