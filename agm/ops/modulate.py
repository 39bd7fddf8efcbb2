"""The modulation of one step and its backward: the front door of both ops to the API."""

import importlib
from typing import cast

import torch
from torch import Tensor

from agm.ops._backends import BACKENDS, MOST_ROWS, select
from agm.shapley.weights import weights_on, without_numbers


def modulate(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    *,
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
    backend: str = "auto",
) -> Tensor:
    """Scores, ratios and coefficients of one step; returns the subset scales c_S (2**M - 1,) float64.

    `agm.ops.reference.modulate` says what is computed. The arguments are taken as checked.
    """
    op = select("modulate", masked_logits.device, backend, rows=masked_logits.shape[0])
    return cast(
        Tensor,
        op(masked_logits.detach(), target, values, counts, alpha, max_gap, floor, ignore_index, update),
    )


def prepare(modalities: int, device: torch.device) -> None:
    """Puts the tables that the kernels read on a device, before a step asks for them.

    A first step may run inside a CUDA graph (`torch.compile` with mode "reduce-overhead" warms up there), whose memory
    must not hold what outlives it.
    """
    if device.type != "cuda" or without_numbers():
        return
    weights_on(device, modalities)
    if 2**modalities - 1 <= MOST_ROWS and BACKENDS["triton"].why_not("modulate", "cuda") is None:
        importlib.import_module("agm.kernels.modulate").subset_weights(modalities, device)


def modulate_backward(
    grad: Tensor,  # (B, C)
    subset_scales: Tensor,  # (2**M - 1,) float64
    *,
    backend: str = "auto",
) -> Tensor:
    """c_S * g in every row: (2**M - 1, B, C) of grad's dtype; a row whose scale is 0 is 0."""
    return cast(Tensor, select("modulate_backward", grad.device, backend)(grad, subset_scales))
