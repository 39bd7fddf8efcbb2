"""Padded sequences: masks (True = padding) for attention and pooling that never divide by zero."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["masked_attention_inputs", "masked_mean", "read_padded", "zero_padding"]


def read_padded(value: Any, key: str, mask_key: str = "padding_mask") -> tuple[Tensor, Tensor | None]:
    """The sequence and its mask (or lengths) from a tensor or a mapping {key: sequence, mask_key: mask}.

    Raises:
        TypeError: neither a tensor nor a mapping of tensors.
        ValueError: the mapping has other keys.
    """
    mask = None
    if isinstance(value, Mapping):
        if key not in value or not set(value) <= {key, mask_key}:
            raise ValueError(f"Expected a mapping with {key!r} and {mask_key!r}, but got keys {sorted(value)}.")
        value, mask = value[key], value.get(mask_key)
    for part in (value,) if mask is None else (value, mask):
        if not isinstance(part, Tensor):
            raise TypeError(
                f"Expected a tensor or a mapping of tensors {{{key!r}: ..., {mask_key!r}: ...}}, "
                f"but got {type(part).__name__}."
            )
    return value, mask


def check_padding_mask(mask: Tensor, sequence: Tensor) -> None:
    """Raise ValueError unless `mask` is (B, T) bool for a sequence (B, T, ...)."""
    if mask.dtype != torch.bool or mask.shape != sequence.shape[:2]:
        raise ValueError(
            f"Expected `padding_mask` to be bool {tuple(sequence.shape[:2])} with True = padding, "
            f"but got {mask.dtype} {tuple(mask.shape)}."
        )


def zero_padding(sequence: Tensor, mask: Tensor | None) -> Tensor:
    """`sequence` (B, T) or (B, T, D) with zeros where `mask` (B, T) is True: no garbage goes further."""
    if mask is None:
        return sequence
    return sequence.masked_fill(mask if sequence.ndim == 2 else mask.unsqueeze(-1), 0)


def masked_attention_inputs(mask: Tensor) -> tuple[Tensor, Tensor]:
    """A mask that any softmax survives, and the rows that had nothing to attend to.

    Where every key of a row is padding, softmax gives 0 / 0, and not every attention kernel mends that; such
    a row attends to its padding instead, and the caller drops what it read.

    Args:
        mask: (B, T) bool, True = padding.

    Returns:
        mask (B, T) bool without fully padded rows, and empty (B, 1, 1) bool.
    """
    empty = mask.all(dim=1, keepdim=True)
    return mask & ~empty, empty.unsqueeze(-1)


def masked_mean(sequence: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid steps: (B, T, D), (B, T) bool -> (B, D); zeros for a fully padded row."""
    if mask is None:
        return sequence.mean(dim=1)
    count = (~mask).sum(dim=1, keepdim=True).clamp(min=1)
    return zero_padding(sequence, mask).sum(dim=1) / count.to(sequence.dtype)
