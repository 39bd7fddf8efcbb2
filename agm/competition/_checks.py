"""Checks of what several parts of the measurement take."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_batch", "check_count", "check_ridge", "check_width"]


def check_batch(features: Any, concepts: Any, names: tuple[str, str] = ("features", "concepts")) -> None:
    """Raise ValueError unless (N, D) features and (N, p) concepts are finite floating tensors in one place."""
    for name, values in zip(names, (features, concepts), strict=True):
        if not isinstance(values, Tensor) or values.dim() != 2 or not values.is_floating_point():
            got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"Expected argument `{name}` to be a floating tensor with one row a sample, (N, width), but got {got}. "
                "Flatten each sample to a vector."
            )
        if values.shape[1] == 0:
            raise ValueError(f"Expected argument `{name}` to have one column or more, but got {tuple(values.shape)}.")
    if len(features) != len(concepts):
        raise ValueError(
            f"Expected arguments `{names[0]}` and `{names[1]}` to have the same number of rows, but got "
            f"{len(features)} and {len(concepts)}. Take both from the same samples in the same order."
        )
    if features.device != concepts.device:
        raise ValueError(
            f"Expected arguments `{names[0]}` and `{names[1]}` to be on one device, but got {features.device} and "
            f"{concepts.device}. Move one of them."
        )
    for name, values in zip(names, (features, concepts), strict=True):
        wrong = ~torch.isfinite(values).all(dim=1)
        if bool(wrong.any()):
            raise ValueError(
                f"Expected argument `{name}` to be finite, but got NaN or infinity in {int(wrong.sum())} of "
                f"{len(values)} rows, first in row {int(wrong.nonzero()[0])}. Look for what diverged in the network."
            )


def check_width(name: str, got: int, expected: int) -> None:
    """Raise ValueError unless the samples are as wide as those before."""
    if got != expected:
        raise ValueError(
            f"Expected argument `{name}` to have {expected} columns, as the samples before, but got {got}. "
            "Take all samples from the same network."
        )


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value!r}.")


def check_ridge(ridge: Any) -> None:
    """Raise ValueError unless `ridge` is a penalty, or "cv"."""
    number = isinstance(ridge, int | float) and not isinstance(ridge, bool)
    if ridge != "cv" and not (number and ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(
            f"Expected argument `ridge` to be a finite number >= 0, or 'cv' for one chosen by cross-validation, "
            f"but got {ridge!r}."
        )
