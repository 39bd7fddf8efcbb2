"""How far tensors are from what they should be."""

from torch import Tensor

__all__ = ["difference", "largest_of"]


def largest_of(tensor: Tensor) -> float:
    """The largest absolute value that is a number; 0 where there is none."""
    finite = tensor.detach().double().nan_to_num(0.0, 0.0, 0.0).abs()
    return float(finite.max()) if finite.numel() else 0.0


def difference(got: Tensor, expected: Tensor, scale: float) -> float:
    """Largest difference over `scale`; equal infinities are no difference, and a NaN on one side an infinite one."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach().double(), expected.detach().double()
    same = (got == expected) | (got.isnan() & expected.isnan())
    absolute = (got - expected).abs().masked_fill(same, 0.0).nan_to_num(float("inf"))
    largest = float(absolute.max()) if absolute.numel() else 0.0
    return largest / scale if scale and largest else (float("inf") if largest else 0.0)
