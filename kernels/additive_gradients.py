"""The backward of additive fusions in Triton: the gradient scaled into every row, and summed over the batch."""

import torch
import triton
import triton.language as tl
from agm.kernels.launching import ENOUGH_PROGRAMS, accumulation_dtype, device_guard
from torch import Tensor

__all__ = ["modulate_additive_backward"]

_BLOCK = 1024  # elements of a gradient that a program of the backward holds: samples * classes
_MAX_CLASSES = 128  # of that block
_SHARES = 64  # of the batch, whose columns' sums `_scale_columns` adds up at a time


@triton.jit
def _scaled(scale, number):
    return tl.where(scale == 0.0, 0.0, scale * number)


@triton.jit(do_not_specialize=["batch", "share"])
def _scale_and_sum(
    grad,  # (batch, classes)
    scales,  # (rows,) float64
    out,  # (rows, batch + 1, classes)
    sums,  # (shares, classes) float64
    rows,
    batch,
    classes,
    share,  # samples of each program
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
):
    # One program reads its samples and classes once, writes them into every row, and sums the columns.
    index = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, batch)
    size = (tl.cast(batch, tl.int64) + 1) * classes
    column = tl.zeros([CLASSES], tl.float64)
    for first in range(begin, end, SAMPLES):
        sample = first + tl.arange(0, SAMPLES)
        inside = (sample < end)[:, None] & (index < classes)[None, :]
        at = sample.to(tl.int64)[:, None] * classes + index[None, :]
        gradient = tl.load(grad + at, mask=inside, other=0.0)
        if gradient.dtype != tl.float64:
            gradient = gradient.to(tl.float32)
        column += tl.sum(gradient, 0).to(tl.float64)
        target = out + at
        for row in range(rows):
            scale = tl.load(scales + row).to(gradient.dtype)
            tl.store(target, _scaled(scale, gradient).to(out.dtype.element_ty), mask=inside)
            target += size
    tl.store(sums + tl.program_id(1).to(tl.int64) * classes + index, column, mask=index < classes)


@triton.jit(do_not_specialize=["shares", "batch", "last"])
def _scale_columns(
    sums,  # (shares, classes) float64
    scales,  # (rows,) float64
    out,  # (last + 1, classes): each sum behind the rows that it is of, that of b the last
    parts,
    shares,
    batch,
    last,
    classes,
    SHARES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    index = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    total = tl.zeros([SHARES, CLASSES], tl.float64)
    for first in range(0, shares, SHARES):
        share = first + tl.arange(0, SHARES)
        inside = (share < shares)[:, None] & (index < classes)[None, :]
        total += tl.load(sums + share.to(tl.int64)[:, None] * classes + index[None, :], mask=inside, other=0.0)
    column = tl.sum(total, 0).to(DTYPE)
    for part in range(parts):
        scale = tl.load(scales + part).to(DTYPE)
        row = tl.minimum(tl.cast(part, tl.int64) * (batch + 1) + batch, last)
        at = out + row * classes + index
        tl.store(at, _scaled(scale, column).to(out.dtype.element_ty), mask=index < classes)


def modulate_additive_backward(
    grad: Tensor,  # (B, C)
    scales: Tensor,  # (2, M + 1) float64
    given_joint: bool,
) -> Tensor:
    """The gradients of p_m, each with that of q_m behind it, of given joint logits, and of b, in two launches.

    The batch is shared out by its size alone and summed in order: the same bits every time.
    """
    grad, scales = grad.contiguous(), scales.contiguous()
    batch, classes = grad.shape
    parts = scales.shape[1]
    rows = parts if given_joint else parts - 1
    length = (parts - 1) * (batch + 1) + (batch if given_joint else 0) + 1
    out = grad.new_empty((length, classes))
    if classes == 0:
        return out
    block = min(_MAX_CLASSES, triton.next_power_of_2(classes))
    blocks = triton.cdiv(classes, block)
    samples = min(_BLOCK // block, triton.next_power_of_2(max(batch, 1)))
    shares = max(1, min(triton.cdiv(batch, samples), ENOUGH_PROGRAMS // blocks))
    share = triton.cdiv(triton.cdiv(batch, samples), shares) * samples
    sums = grad.new_empty((shares, classes), dtype=torch.float64)
    with device_guard(grad):
        _scale_and_sum[(blocks, shares)](
            *(grad, scales[0], out, sums, rows, batch, classes, share),
            SAMPLES=samples,
            CLASSES=block,
            enable_fp_fusion=True,
        )
        _scale_columns[(blocks,)](
            *(sums, scales[1], out, parts, shares, batch, length - 1, classes),
            SHARES=min(_SHARES, triton.next_power_of_2(shares)),
            CLASSES=block,
            DTYPE=accumulation_dtype(grad.dtype)[1],
            enable_fp_fusion=True,
        )
    return out
