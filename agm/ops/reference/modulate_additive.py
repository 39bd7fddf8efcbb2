"""The modulation of one step for additive fusions: any number of modalities, and no subset tensor.

Where `z_S = b + sum_{m in S} p_m + sum_{m not in S} q_m`, the Shapley values need no subsets: with
`d_m = p_m - q_m`, the mono-modal responses are `phi_m = d_m + (z_full - sum_j d_j) / M`.
"""

import torch
from torch import Tensor

from agm.ops.reference.modulate import accumulation_dtype, modulate_backward, without
from agm.ops.reference.steps import make_step


def additive_responses(present: Tensor, absent: Tensor, joint: Tensor) -> Tensor:
    """Mono-modal responses: (M, B, C), (M, C), (B, C) -> (M, B, C) of the accumulation type.

    -inf, wherever it stands, is a class that a sample cannot have, as in `responses`.
    """
    parts = [part.double() for part in (present, absent.unsqueeze(1), joint)]
    impossible = [part == -torch.inf for part in parts]
    own, none, together = (part.masked_fill(gone, 0.0) for part, gone in zip(parts, impossible, strict=True))
    difference = own - none
    response = difference + (together - difference.sum(0)) / len(present)
    gone = impossible[0].any(0) | impossible[1].any(0) | impossible[2]
    return without(gone, response).to(accumulation_dtype(present.dtype))


def modulate_additive(
    present: Tensor,  # (M, B, C), p_m
    absent: Tensor,  # (M, C), q_m
    bias: Tensor | None,  # (C,), b; only without joint_logits
    joint_logits: Tensor | None,  # (B, C), where the joint pass used other features than `present`
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, as in `modulate`
    counts: Tensor,  # (M + 4,) int64, as in `modulate`
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
) -> tuple[Tensor, Tensor]:
    """One step of the modulation.

    Returns:
        the joint logits `b + sum_m p_m` (B, C) of the dtype of `present`, or (0, C) where they were given; and the
        scales of the gradients, (2, M + 1) float64: those of p_m and, last, of the joint logits that were given;
        those of q_m and, last, of b. With kappa the coefficients and k their mean, the scale of p_m is kappa_m (or
        kappa_m - k beside joint logits, whose own is k), of q_m k - kappa_m, of b k.
    """
    dtype = accumulation_dtype(present.dtype)
    if joint_logits is None:
        wide = present.to(dtype).sum(0)
        wide = wide if bias is None else wide + bias.to(dtype)
        logits = wide.to(present.dtype)
    else:
        wide = joint_logits.to(dtype)
        logits = present.new_empty(0, present.shape[2])
    settings = (alpha, max_gap, floor, ignore_index, update)
    coefficients = make_step(additive_responses(present, absent, wide), wide, target, values, counts, *settings)
    return logits, additive_scales(coefficients, joint_logits is not None)


def additive_scales(coefficients: Tensor, given_joint: bool) -> Tensor:
    """(M,) float64 -> (2, M + 1) float64. Written around kappa = 1, so that unmodulated training is exact."""
    excess = coefficients - 1
    mean = excess.mean()
    own = excess - mean if given_joint else coefficients
    return torch.stack([torch.cat([own, (mean + 1).view(1)]), torch.cat([mean - excess, (mean + 1).view(1)])])


def modulate_additive_backward(grad: Tensor, scales: Tensor, given_joint: bool) -> Tensor:
    """(B, C), (2, M + 1) float64 -> the gradients of p_m (B, C), each with that of q_m (1, C) behind it, of given joint
    logits (B, C), and of b (1, C), one behind the other in a tensor of grad's dtype. What has a scale of exactly 0 is
    0, whatever the gradient holds.
    """
    rows = scales[0] if given_joint else scales[0, :-1]
    columns = grad.sum(0, dtype=accumulation_dtype(grad.dtype))
    sums = modulate_backward(columns.view(1, -1), scales[1]).to(grad.dtype)  # (M + 1, 1, C)
    own = modulate_backward(grad, rows)
    if given_joint:
        return torch.cat([own, sums], 1).flatten(0, 1)
    return torch.cat([torch.cat([own, sums[:-1]], 1).flatten(0, 1), sums[-1]])
