"""The modulation of one step together with the mean cross-entropy of the joint logits."""

import torch
from torch import Tensor

from agm.ops.reference.modulate import accumulation_dtype, modulate, modulate_backward


def modulate_cross_entropy(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, as in `modulate`
    counts: Tensor,  # (M + 4,) int64, as in `modulate`
    weight: Tensor | None,  # (C,) of the accumulation type
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    label_smoothing: float,
    update: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`modulate`, and the loss with what its backward needs.

    With e the label smoothing, w the class weights and y the target, a sample costs
    `(1 - e) w_y (-log p_y) + e / C sum_c w_c (-log p_c)`; the loss is the sum over the samples in use divided by
    the sum of their w_y, as in `torch.nn.functional.cross_entropy`. A class index outside [0, C) makes it NaN.

    Returns:
        the loss, () of the accumulation type; c_S (2**M - 1,) float64; the normalizer of each sample's softmax,
        (2, B) of the accumulation type: the largest logit and log(sum(exp(logit - largest))), 0 for samples without a
        class; and (2,) float64: the weights of the samples in use, summed, and those of the classes, which only label
        smoothing needs (0 without).
    """
    subset_scales = modulate(masked_logits, target, values, counts, alpha, max_gap, floor, ignore_index, update)
    joint = masked_logits[-1].to(accumulation_dtype(masked_logits.dtype))
    classes = joint.shape[1]
    if weight is None:
        weight = joint.new_ones(classes)
    largest = joint.amax(1)
    # An infinite or NaN logit makes the normalizer NaN; -inf is a class that cannot be.
    shift = largest.where(largest != -torch.inf, 0)
    log_sum = (joint - shift.unsqueeze(1)).exp().sum(1).log()

    used = target != ignore_index
    index = target.clamp(0, classes - 1)
    unknown = used & (index != target)
    own = joint.gather(1, index.unsqueeze(1))
    own_weight = weight.double()[index]
    cost = (log_sum + (largest - own.squeeze(1))).double()
    loss = (1 - label_smoothing) * own_weight * cost
    all_weights = loss.new_zeros(())
    if label_smoothing > 0:
        all_weights = weight.double().sum()
        spread = (weight * (own - joint)).double().sum(1)
        loss = loss + label_smoothing / classes * (all_weights * cost + spread)
    total = own_weight.masked_fill(unknown, torch.nan).masked_fill(~used, 0).sum()
    loss = loss.masked_fill(~used, 0).sum() / total
    sums = torch.stack([total, all_weights])
    normalizer = torch.stack([largest, log_sum]).masked_fill(~used | unknown, 0)
    return loss.to(joint.dtype), subset_scales, normalizer, sums


def modulate_cross_entropy_backward(
    grad_loss: Tensor,  # ()
    grad_logits: Tensor | None,  # (B, C)
    joint_logits: Tensor,  # (B, C)
    target: Tensor,  # (B,) int64
    weight: Tensor | None,  # (C,)
    normalizer: Tensor,  # (2, B)
    sums: Tensor,  # (2,) float64
    subset_scales: Tensor,  # (2**M - 1,) float64
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """c_S * g for every subset, (2**M - 1, B, C) of the logits' dtype.

    g is the gradient of the joint logits through the loss, plus `grad_logits`. Ignored rows get nothing through the
    loss, and rows whose scale is exactly 0 are 0, whatever the gradient holds.
    """
    dtype = accumulation_dtype(joint_logits.dtype)
    logits = joint_logits.to(dtype)
    classes = logits.shape[1]
    used = target != ignore_index
    index = target.clamp(0, classes - 1)
    own_weight = 1 if weight is None else weight.to(dtype)[index].unsqueeze(1)
    each_weight = 1 if weight is None else weight.to(dtype)
    smooth = label_smoothing / classes
    probability = ((logits - normalizer[0].unsqueeze(1)) - normalizer[1].unsqueeze(1)).exp()
    gradient = probability * ((1 - label_smoothing) * own_weight + smooth * sums[1].to(dtype)) - smooth * each_weight
    hot = torch.zeros_like(logits).scatter(1, index.unsqueeze(1), 1.0)
    gradient = gradient - (1 - label_smoothing) * own_weight * hot
    gradient = gradient * (grad_loss.double() / sums[0]).to(dtype)
    gradient = gradient.masked_fill(~used.unsqueeze(1), 0)
    if grad_logits is not None:
        gradient = gradient + grad_logits.to(dtype)
    return modulate_backward(gradient, subset_scales).to(joint_logits.dtype)
