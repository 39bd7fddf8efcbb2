"""How far tensors are from what they should be."""

import torch
from torch import Tensor

__all__ = ["difference", "is_same", "largest_of"]


def _dense(tensor: Tensor) -> Tensor:
    """In float64 with every element written out, as sparse ones compare with nothing."""
    tensor = tensor.detach()
    return (tensor if tensor.layout == torch.strided else tensor.to_dense()).double()


def is_same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same values."""
    if left.layout == right.layout == torch.strided:
        return torch.equal(left, right)
    return left.layout == right.layout and left.shape == right.shape and torch.equal(left.to_dense(), right.to_dense())


def largest_of(tensor: Tensor) -> float:
    """The largest absolute value that is a number; 0 where there is none."""
    finite = _dense(tensor).nan_to_num(0.0, 0.0, 0.0).abs()
    return float(finite.max()) if finite.numel() else 0.0


def difference(got: Tensor, expected: Tensor, scale: float) -> float:
    """Largest difference over `scale`; equal infinities are no difference, and a NaN on one side an infinite one."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = _dense(got), _dense(expected)
    same = (got == expected) | (got.isnan() & expected.isnan())
    absolute = (got - expected).abs().masked_fill(same, 0.0).nan_to_num(float("inf"))
    largest = float(absolute.max()) if absolute.numel() else 0.0
    return largest / scale if scale and largest else (float("inf") if largest else 0.0)
