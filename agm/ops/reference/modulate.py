"""The modulation of one step and its backward."""

import torch
from torch import Tensor

from agm.ops.reference.steps import make_step
from agm.shapley.weights import num_modalities, weights_on


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, every other floating dtype is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def responses(masked_logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mono-modal responses phi: (2**M - 1, B, C) -> (M, B, C), which sum to the joint logits.

    float64 for float64 logits, otherwise float32. `weights` (M, R) float64 take the place of `agm.subset_weights` where
    other rows (R, B, C) than those of all subsets are given.

    A logit of -inf says that a sample cannot have a class: its responses are -inf then, whichever subsets say so.
    """
    rows, batch, classes = masked_logits.shape
    if weights is None:
        weights = weights_on(masked_logits.device, num_modalities(rows))
    # A product in float64 is one that neither autocast nor TF32 cuts short, and does not overflow on the way to a
    # response that does not. Its order of summation varies from column to column, which rounding to float32 hides; in
    # float64 it has to be the same for all, or equal logits would have different responses.
    logits = masked_logits.double().reshape(rows, batch * classes)
    impossible = logits == -torch.inf
    possible = logits.masked_fill(impossible, 0.0)
    if masked_logits.dtype == torch.float64:
        response = torch.stack([_summed(weight.unsqueeze(1) * possible) for weight in weights.unbind()])
    else:
        response = weights @ possible
    response = without(impossible.any(0), response)
    return response.view(len(weights), batch, classes).to(accumulation_dtype(masked_logits.dtype))


def _summed(rows: Tensor) -> Tensor:
    """The sum over the first dimension, written over the rows: elementwise, in halves."""
    while len(rows) > 1:
        half = len(rows) // 2
        rows[:half] += rows[-half:]
        rows = rows[:-half]
    return rows[0]


def without(impossible: Tensor, response: Tensor) -> Tensor:
    """-inf for the classes that a sample cannot have, where their other logits are finite."""
    return response.masked_fill(impossible & response.isfinite(), -torch.inf)


def subset_scales(coefficients: Tensor, weights: Tensor | None = None) -> Tensor:
    """c_S = sum over m of kappa_m w(m, S): (M,) float64 -> (2**M - 1,) float64, or (R,) with `weights` (M, R).

    Written around kappa = 1, so that unmodulated training gives exactly 0 and, for the joint row, 1.
    """
    if weights is None:
        weights = weights_on(coefficients.device, len(coefficients))
    scales = (coefficients - 1) @ weights
    return torch.cat([scales[:-1], scales[-1:] + 1])


def modulate(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, rows as named in steps.py
    counts: Tensor,  # (M + 4,) int64: mono-modal hits, then as named there
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
) -> Tensor:
    """Scores, ratios and coefficients of one step into `values` and `counts`; returns c_S (2**M - 1,) float64.

    Without `update` nothing is written. If a score or a coefficient is not finite, kappa is 1 and of the
    running quantities only the number of skipped steps changes.
    """
    settings = (alpha, max_gap, floor, ignore_index, update)
    return subset_scales(make_step(responses(masked_logits), masked_logits[-1], target, values, counts, *settings))


def modulate_backward(grad: Tensor, subset_scales: Tensor) -> Tensor:
    """c_S * g for every subset: (B, C), (2**M - 1,) float64 -> (2**M - 1, B, C) of grad's dtype.

    Rows whose scale is exactly 0 are 0, whatever the gradient holds.
    """
    dtype = accumulation_dtype(grad.dtype)
    scales = subset_scales.to(dtype)[:, None, None]
    return torch.where(scales == 0, 0.0, scales * grad.to(dtype)).to(grad.dtype).contiguous()
