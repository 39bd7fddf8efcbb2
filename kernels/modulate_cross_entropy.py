"""The modulation together with the cross-entropy of the joint logits, in Triton.

The forward pass is that of `agm.kernels.modulate`, which looks at the joint logits while it has them. The backward
pass reads the joint logits once, makes the gradient of the loss from the normalizers that were kept, and writes every
row's: no softmax is ever stored.
"""

import triton
import triton.language as tl
from agm.kernels.launching import (
    accumulation_dtype,
    aligned,
    are_aligned,
    bits,
    device_guard,
    float64,
    parts_that_fill,
    resident_programs,
    unit_class_stride,
)
from agm.kernels.modulate import Loss, launch_step
from torch import Tensor

__all__ = ["modulate_cross_entropy", "modulate_cross_entropy_backward"]

_TILE = 1024  # elements of the gradient that a program of the backward holds


def modulate_cross_entropy(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    weight: Tensor | None,  # (C,)
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    label_smoothing: float,
    update: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss (), the subset scales (2**M - 1,), the normalizer (2, B) and the sums (2,), in two launches."""
    wide, _ = accumulation_dtype(masked_logits.dtype)
    loss = masked_logits.new_empty((), dtype=wide)
    normalizer = masked_logits.new_empty((2, masked_logits.shape[1]), dtype=wide)
    sums = values.new_empty(2)
    weight = None if weight is None else weight.contiguous()
    goal = Loss(weight, label_smoothing, loss, normalizer, sums)
    settings = (alpha, max_gap, floor, ignore_index, update)
    return loss, launch_step(masked_logits, target, values, counts, *settings, goal), normalizer, sums


@triton.jit(do_not_specialize=["ignore_index", "label_smoothing", "batch", "batch_stride"])
def _scale_loss_rows(
    logits,  # (batch, classes), the last stride being 1
    grad_loss,  # ()
    grad_logits,  # (batch, classes) compact, or None
    labels,  # (batch,) int64
    class_weight,  # (classes,) or None: all 1
    normalizer,  # (2, batch)
    sums,  # (2,) float64
    scales,  # (rows,) float64
    out,  # (rows, batch, classes)
    rows,
    batch,
    classes,
    batch_stride,
    ignore_index,
    label_smoothing,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    batch_stride = aligned(batch_stride, ALIGNED)
    # One program makes the gradient of its samples and classes once and writes it into its share of the rows.
    label_smoothing = float64(label_smoothing)
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    index = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    exists = sample < batch
    inside = exists[:, None] & (index < classes)[None, :]
    label = tl.load(labels + sample, mask=exists, other=0)
    used = exists & (label != ignore_index)
    known = used & (label >= 0) & (label < classes)

    # Small numbers of each sample in float64; what is elementwise in DTYPE.
    per_weight = tl.load(grad_loss).to(tl.float64) / tl.load(sums)
    smooth = label_smoothing / tl.cast(classes, tl.float64)
    own = tl.full([SAMPLES], 1.0, tl.float64) - label_smoothing
    if class_weight is not None:
        own *= tl.load(class_weight + label, mask=known, other=1.0).to(tl.float64)
    factor = (per_weight * (own + smooth * tl.load(sums + 1))).to(DTYPE)
    at_label = (per_weight * own).to(DTYPE)
    largest = tl.load(normalizer + sample, mask=exists, other=0.0)
    log_sum = tl.load(normalizer + batch + sample, mask=exists, other=0.0)

    row_start = sample.to(tl.int64)[:, None]
    logit = tl.load(logits + row_start * batch_stride + index[None, :], mask=inside, other=0.0).to(DTYPE)
    gradient = factor[:, None] * tl.exp((logit - largest[:, None]) - log_sum[:, None])
    each = (per_weight * smooth).to(DTYPE)
    if class_weight is not None:
        gradient -= each * tl.load(class_weight + index, mask=index < classes, other=0.0)[None, :]
    else:
        gradient -= each
    gradient -= tl.where(index[None, :] == label[:, None], at_label[:, None], 0.0)
    gradient = tl.where(used[:, None], gradient, 0.0)
    at = row_start * classes + index[None, :]
    if grad_logits is not None:
        gradient += tl.load(grad_logits + at, mask=inside, other=0.0).to(DTYPE)

    size = tl.cast(batch, tl.int64) * classes
    target = out + tl.program_id(2) * size + at
    for row in range(tl.program_id(2), rows, tl.num_programs(2)):
        scale = tl.load(scales + row).to(DTYPE)
        scaled = tl.where(scale == 0.0, 0.0, scale * gradient)
        tl.store(target, scaled.to(out.dtype.element_ty), mask=inside)
        target += tl.num_programs(2) * size


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
    """c_S * g for every subset, (2**M - 1, B, C) of the logits' dtype, in one launch."""
    batch, classes = joint_logits.shape
    rows = subset_scales.shape[0]
    logits = unit_class_stride(joint_logits)
    out = logits.new_empty((rows, batch, classes))
    if out.numel() == 0:
        return out
    block = min(_TILE, triton.next_power_of_2(classes))
    samples = _TILE // block
    groups, parts = triton.cdiv(batch, samples), triton.cdiv(classes, block)
    shares = parts_that_fill(groups * parts, rows, resident_programs(logits.device))
    with device_guard(logits):
        _scale_loss_rows[(groups, parts, shares)](
            *(logits, grad_loss, None if grad_logits is None else grad_logits.contiguous(), target.contiguous()),
            *(None if weight is None else weight.contiguous(), normalizer.contiguous(), sums.contiguous()),
            *(subset_scales.contiguous(), out, rows, batch, classes, logits.stride(0)),
            *(ignore_index, bits(label_smoothing)),
            SAMPLES=samples,
            CLASSES=block,
            DTYPE=accumulation_dtype(logits.dtype)[1],
            ALIGNED=are_aligned(logits.stride(0)),
            enable_fp_fusion=True,
        )
    return out
