"""The modulation of one step and its backward."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from agm.shapley import num_modalities, weights_on

# Rows of `values`, and the entries of `counts` behind its first M.
RUNNING_SCORES, SCORES, RATIOS, REFERENCE_RATIOS, COEFFICIENTS = range(5)
JOINT_CORRECT, SAMPLES, STEP, SKIPPED = range(4)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, every other floating dtype is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def responses(masked_logits: Tensor) -> Tensor:
    """Mono-modal responses phi: (2**M - 1, B, C) -> (M, B, C), which sum to the joint logits.

    float64 for float64 logits, otherwise float32.
    """
    rows, batch, classes = masked_logits.shape
    weights = weights_on(masked_logits.device, num_modalities(rows))
    # A product in float64 is one that neither autocast nor TF32 cuts short, and rounds equal logits alike.
    response = weights @ masked_logits.double().reshape(rows, batch * classes)
    return response.view(len(weights), batch, classes).to(accumulation_dtype(masked_logits.dtype))


def sample_scores(response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each response, at most -log(floor): (M, B, C), (B,) -> (M, B), and the rows in use (B,).

    Ignored rows are 0. A class index outside [0, C) gives NaN, which makes the step a skipped one.
    """
    used = target != ignore_index
    index = target.clamp(0, response.shape[-1] - 1)
    log_probability = F.log_softmax(response, dim=-1)
    picked = log_probability.gather(-1, index.expand(response.shape[0], -1).unsqueeze(-1)).squeeze(-1)
    cost = -picked
    if floor > 0:
        cost = cost.clamp(max=-math.log(floor))
    cost = cost.masked_fill(used & (index != target), torch.nan)
    return cost.masked_fill(~used, 0.0), used


def discrepancy_ratios(scores: Tensor) -> Tensor:
    """exp(sum over j != m of (s_j - s_m) / (M - 1)): (M,) -> (M,); above 1 for a modality that runs ahead."""
    return ((scores.sum() - scores * len(scores)) / (len(scores) - 1)).exp()


def subset_scales(coefficients: Tensor) -> Tensor:
    """c_S = sum over m of kappa_m w(m, S): (M,) float64 -> (2**M - 1,) float64.

    Written around kappa = 1, so that unmodulated training gives exactly 0 and, for the joint row, 1.
    """
    scales = (coefficients - 1) @ weights_on(coefficients.device, len(coefficients))
    return torch.cat([scales[:-1], scales[-1:] + 1])


def modulate(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, rows as named above
    counts: Tensor,  # (M + 4,) int64: mono-modal hits, then as named above
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


def make_step(
    response: Tensor,  # (M, B, C)
    joint: Tensor,  # (B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64
    counts: Tensor,  # (M + 4,) int64
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
) -> Tensor:
    """What `modulate` does with the responses, wherever they come from; returns the coefficients (M,) float64."""
    cost, used = sample_scores(response, target, floor, ignore_index)
    samples = used.sum()
    scores = cost.double().sum(1) / samples
    running, step = values[RUNNING_SCORES], counts[len(scores) + STEP] + 1

    ratios = discrepancy_ratios(scores)
    reference_ratios = discrepancy_ratios(running)
    coefficients = (alpha * (reference_ratios - ratios).clamp(max=max_gap)).exp()
    # A coefficient is applied in float32, so a finite one is finite there.
    finite = scores.isfinite().all() & (coefficients <= torch.finfo(torch.float32).max).all()
    coefficients = torch.where(finite, coefficients, 1.0)

    if update:
        predicted = torch.cat([response.argmax(-1), joint.argmax(-1).unsqueeze(0)])
        hits = (predicted.eq(target) & used).sum(1)
        t = step.double()
        running = torch.where(finite, running * ((t - 1) / t) + scores / t, running)
        skipped = counts[len(scores) + SKIPPED] + (~finite)
        step = step - (~finite).long()
        counts.copy_(torch.cat([hits, torch.stack([samples, step, skipped])]))
        values.copy_(torch.stack([running, scores, ratios, reference_ratios, coefficients]))
    return coefficients


def modulate_backward(grad: Tensor, subset_scales: Tensor) -> Tensor:
    """c_S * g for every subset: (B, C), (2**M - 1,) float64 -> (2**M - 1, B, C) of grad's dtype.

    Rows whose scale is exactly 0 are 0, whatever the gradient holds.
    """
    dtype = accumulation_dtype(grad.dtype)
    scales = subset_scales.to(dtype)[:, None, None]
    return torch.where(scales == 0, 0.0, scales * grad.to(dtype)).to(grad.dtype).contiguous()
