"""The modulation of a linear head and the mean cross-entropy of the joint logits, in chunks: no masked logits exist.

With `z_S = h_S W^T + b` the responses are `phi_m = (sum_S w(m, S) h_S) W^T + b / M`, and they sum to the joint logits.
With g the gradient of these, `dL/dh_S = c_S g W`, `dL/dW = g^T sum_S c_S h_S` and `dL/db = mean(kappa) sum g`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from agm.ops.reference.modulate import accumulation_dtype, subset_scales
from agm.ops.reference.steps import batch_totals, finish_step, sample_scores
from agm.shapley.weights import weights_on

__all__ = ["modulate_linear_cross_entropy", "modulate_linear_cross_entropy_backward"]


def modulate_linear_cross_entropy(
    hidden: Tensor,  # (2**M - 1, B, D), what the head is given for each subset
    weight: Tensor,  # (C, D)
    bias: Tensor | None,  # (C,)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, as in `modulate`
    counts: Tensor,  # (M + 4,) int64, as in `modulate`
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    label_smoothing: float,
    update: bool,
    chunk_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`modulate_cross_entropy` of `hidden @ weight.T + bias`, `chunk_rows` samples at a time: M products with W.

    Returns:
        the loss, () of the accumulation type; c_S (2**M - 1,) float64; the normalizer (2, B) of the accumulation type,
        as in `modulate_cross_entropy`; and () float64, the number of samples in use, NaN if a class does not exist.
    """
    wide = accumulation_dtype(hidden.dtype)
    modalities, batch, classes = values.shape[1], hidden.shape[1], len(weight)
    own_weights = weights_on(hidden.device, modalities).to(wide)
    added = None if bias is None else bias.to(wide)
    used = target != ignore_index
    index = target.clamp(0, classes - 1)
    unknown = used & (index != target)
    cost = hidden.new_empty((modalities, batch), dtype=wide)
    hits = target.new_empty((modalities + 1, batch), dtype=torch.bool)
    normalizer = hidden.new_zeros((2, batch), dtype=wide)
    loss = hidden.new_zeros(batch, dtype=torch.float64)
    for rows in _chunks(batch, chunk_rows):
        given, label = hidden[:, rows], target[rows]
        product = given[-1].mm(weight.T).to(wide)
        joint = product if added is None else product + added
        # The last response is what the others leave of the product: M products in all, and the joint one as it is.
        rest = product if modalities == 1 else product.clone()
        for m in range(modalities):
            if m < modalities - 1:
                mixed = torch.einsum("s,sbd->bd", own_weights[m], given.to(wide)).to(hidden.dtype)
                response = mixed.mm(weight.T).to(wide)
                rest -= response
            else:
                response = rest
            if added is not None:
                response = response + added / modalities
            scored, _ = sample_scores(response.unsqueeze(0), label, floor, ignore_index)
            cost[m, rows] = scored[0]
            hits[m, rows] = response.argmax(-1) == label
        hits[modalities, rows] = joint.argmax(-1) == label
        largest = joint.amax(1)
        log_sum = (joint - largest.where(largest != -torch.inf, 0).unsqueeze(1)).exp_().sum(1).log()
        own = joint.gather(1, index[rows].unsqueeze(1)).squeeze(1)
        sample_loss = (log_sum + (largest - own)).double()
        if label_smoothing > 0:
            spread = (log_sum + (largest - joint.mean(1))).double()
            sample_loss = (1 - label_smoothing) * sample_loss + label_smoothing * spread
        loss[rows] = sample_loss
        skipped = (~used | unknown)[rows]
        normalizer[0, rows] = largest.masked_fill(skipped, 0)
        normalizer[1, rows] = log_sum.masked_fill(skipped, 0)
    totals = batch_totals(cost, hits, used, None)
    coefficients = finish_step(totals, values, counts, alpha, max_gap, update)
    count = used.sum().double().masked_fill(unknown.any(), torch.nan)
    mean = loss.masked_fill(~used, 0).sum() / count
    return mean.to(wide), subset_scales(coefficients), normalizer, count


def modulate_linear_cross_entropy_backward(
    grad_loss: Tensor,  # ()
    hidden: Tensor,  # (2**M - 1, B, D)
    weight: Tensor,  # (C, D)
    bias: Tensor | None,  # (C,)
    target: Tensor,  # (B,) int64
    normalizer: Tensor,  # (2, B)
    count: Tensor,  # () float64
    subset_scales: Tensor,  # (2**M - 1,) float64
    ignore_index: int,
    label_smoothing: float,
    chunk_classes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `hidden` (2**M - 1, B, D), of the weight (C, D) and of the bias (C,).

    `chunk_classes` classes at a time: those of weight and bias are then made whole, and written once. Three products
    with W in all, one of which is that of the joint logits again.
    """
    wide = accumulation_dtype(hidden.dtype)
    joint = hidden[-1]
    scales = subset_scales.to(wide)
    mixed = torch.einsum("s,sbd->bd", scales, hidden.to(wide)).to(hidden.dtype)
    used = (target != ignore_index).unsqueeze(1)
    # sum_S c_S: each subset's logits have the bias.
    whole = subset_scales.sum().to(wide)
    per_sample = (grad_loss.double() / count).to(wide)
    smooth = label_smoothing / len(weight)
    through = torch.zeros_like(joint, dtype=wide)
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    grad_bias = weight.new_empty(len(weight))
    for classes in _chunks(len(weight), chunk_classes):
        part = weight[classes]
        logits = joint.mm(part.T).to(wide)
        if bias is not None:
            logits += bias[classes].to(wide)
        gradient = logits.sub_(normalizer[0].unsqueeze(1)).sub_(normalizer[1].unsqueeze(1)).exp_()
        if smooth > 0:
            gradient -= smooth
        here = (target >= classes.start) & (target < classes.stop)
        own = (target - classes.start).clamp(0, len(part) - 1).unsqueeze(1)
        gradient.scatter_add_(1, own, (here.to(wide) * (label_smoothing - 1.0)).unsqueeze(1))
        gradient = (gradient * per_sample).masked_fill_(~used, 0.0)
        grad_bias[classes] = (gradient.sum(0) * whole).to(weight.dtype)
        gradient = gradient.to(weight.dtype)
        torch.mm(gradient.T, mixed, out=grad_weight[classes])
        through += gradient.mm(part).to(wide)
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    for row, scale in zip(grad_hidden, scales, strict=True):
        row.copy_(torch.where(scale == 0, 0.0, scale * through))
    return grad_hidden, grad_weight, grad_bias


def _chunks(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
