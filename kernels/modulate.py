"""The modulation in Triton: NVIDIA and AMD GPUs, and CPU tensors under `TRITON_INTERPRET=1`.

`agm.ops.reference` is the specification. Two launches make a step: the first (scoring.py) reads the masked logits once
and leaves what each program added up, the second (finishing.py) makes the step of it. With LOSS they also make the
cross-entropy of the joint logits (`agm.kernels.modulate_cross_entropy`). The arithmetic is in responses.py.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from agm.kernels.finishing import _finish, _finish_shares
from agm.kernels.launching import (
    PROGRAMS_WITH_LOSS,
    accumulation_dtype,
    aligned,
    are_aligned,
    bits,
    device_guard,
    even_programs,
    parts_that_fill,
    resident_programs,
    unit_class_stride,
)
from agm.kernels.scoring import RESPONSE_SCALE, _score, _score_shares
from torch import Tensor

__all__ = ["MAX_MODALITIES", "Loss", "launch_step", "modulate", "modulate_backward", "subset_weights"]

MAX_MODALITIES = 6

_BLOCK = 1024  # elements of a gradient that a program of the backward holds
_TILE = {2: 1024, 3: 512, 4: 512, 5: 256, 6: 256}  # logits of one subset that a program holds: samples * classes
_MAX_SAMPLES = 16  # of that tile: each of them takes registers of its own
_MAX_SAMPLES_WITH_LOSS = 8
_SAMPLES = 64  # that `_finish_shares` merges at a time
_PROGRAMS = 64  # whose findings `_finish` adds up at a time


@cache
def subset_weights(modalities: int, device: torch.device) -> Tensor:
    """Shapley weights w(m, S): (2**M - 1, M rounded up to a power of two) float64, 0 in the columns added.

    They stay on the device. A first call inside a CUDA graph would take the graph's memory for them.
    """
    padded = triton.next_power_of_2(modalities)
    table = torch.zeros(2**modalities - 1, padded, dtype=torch.float64, device="cpu")
    for subset in range(1, 2**modalities):
        size = subset.bit_count()
        ways = math.comb(modalities, size)
        for m in range(modalities):
            if subset >> m & 1:
                table[subset - 1, m] = 1 / (size * ways)
            else:
                table[subset - 1, m] = -1 / ((modalities - size) * ways)
    return table.to(device)


@cache
def response_weights(modalities: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same over the scale of responses, in the dtype of these: the loop over the classes converts nothing."""
    return (subset_weights(modalities, device) / RESPONSE_SCALE).to(dtype)


@dataclass(frozen=True)
class Loss:
    """Where the cross-entropy of the joint logits goes, and its settings."""

    class_weight: Tensor | None  # (C,)
    label_smoothing: float
    loss: Tensor  # ()
    normalizer: Tensor  # (2, B)
    sums: Tensor  # (2,) float64


_WIDE = 8  # blocks: of so many classes a sample takes long enough to be shared out, and to be merged by another launch


def shares_of(batch: int, classes: int, block: int, resident: int) -> int:
    """Programs that share out the classes of one sample; 0: none, each sample is added up where it is looked at.

    Which of the two it is, and so which kernels are compiled, goes by the classes alone: a small last batch takes the
    kernels that the others took.
    """
    if classes < _WIDE * block:
        return 0
    return parts_that_fill(batch, classes // (4 * block), resident)


def launch_step(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
    loss: Loss | None,
) -> Tensor:
    """One step of the modulation in two launches, with the loss if wanted; returns the subset scales."""
    rows, batch, classes = masked_logits.shape
    modalities = rows.bit_length()
    if modalities > MAX_MODALITIES:
        raise ValueError(f"Expected at most {MAX_MODALITIES} modalities for the Triton kernel, but got {modalities}.")
    logits = unit_class_stride(masked_logits)
    labels = target.contiguous()
    scales = values.new_empty(rows)
    weights = subset_weights(modalities, logits.device)
    cap = bits(-math.log(floor) if floor > 0 else math.inf)
    wide, dtype = accumulation_dtype(logits.dtype)
    of_responses = response_weights(modalities, logits.device, wide)
    padded = triton.next_power_of_2(modalities)
    tile = _TILE[modalities]
    block = min(tile, triton.next_power_of_2(max(classes, 1)))
    resident = resident_programs(logits.device)
    with_loss = resident_programs(logits.device, PROGRAMS_WITH_LOSS)
    shares = shares_of(batch, classes, block, resident if loss is None else with_loss)
    step = (weights, values, counts, scales, bits(alpha), bits(max_gap))
    class_weight = normalizer = None
    goal = {}
    if loss is not None:
        class_weight, normalizer = loss.class_weight, loss.normalizer
        goal = {"label_smoothing": bits(loss.label_smoothing), "loss": loss.loss, "sums": loss.sums}
    goal["class_weight"] = class_weight
    common = {
        "PADDED": padded,
        "LOSS": loss is not None,
        "SMOOTHING": loss is not None and loss.label_smoothing > 0,
        "enable_fp_fusion": True,
    }
    with device_guard(logits):
        if shares:
            share = triton.cdiv(triton.cdiv(classes, block), shares)
            shares = triton.cdiv(classes, share * block)
            found = logits.new_empty((3, shares, padded, batch), dtype=wide)
            beaten_by = logits.new_empty((shares, 2 * padded, batch), dtype=torch.int32)
            joint_found = None if loss is None else logits.new_empty((4, shares, batch), dtype=torch.float64)
            _score_shares[(batch, shares)](
                *(logits, labels, of_responses, found, beaten_by, batch, classes, share),
                *(logits.stride(0), logits.stride(1), ignore_index, class_weight, joint_found),
                ROWS=rows,
                ALIGNED=are_aligned(*logits.stride()[:2]),
                CLASSES=block,
                DTYPE=dtype,
                **common,
            )
            _finish_shares[(1,)](
                *(found, beaten_by, labels, batch, classes, shares, ignore_index, cap, *step),
                joint_found=joint_found,
                normalizer=normalizer,
                **goal,
                MODALITIES=modalities,
                SAMPLES=_SAMPLES,
                DTYPE=dtype,
                UPDATE=update,
                **common,
            )
            return scales
        most = _MAX_SAMPLES if loss is None else _MAX_SAMPLES_WITH_LOSS
        samples = min(tile // block, most)
        programs = even_programs(triton.cdiv(batch, samples), resident)
        costs = logits.new_empty((programs, padded), dtype=torch.float64)
        hits = logits.new_empty((programs, 2 * padded), dtype=torch.int64)
        losses = None if loss is None else logits.new_empty((programs, 4), dtype=torch.float64)
        _score[(programs,)](
            *(logits, labels, of_responses, costs, hits, batch, classes),
            *(logits.stride(0), logits.stride(1), ignore_index, cap, class_weight, normalizer, losses),
            ROWS=rows,
            ALIGNED=are_aligned(*logits.stride()[:2]),
            SAMPLES=samples,
            CLASSES=block,
            DTYPE=dtype,
            **common,
        )
        _finish[(1,)](
            *(costs, hits, programs, *step),
            losses=losses,
            classes=classes,
            **goal,
            MODALITIES=modalities,
            BLOCK=_PROGRAMS,
            UPDATE=update,
            **common,
        )
    return scales


def modulate(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
) -> Tensor:
    """One step of the modulation in two launches; returns the subset scales c_S (2**M - 1,) float64."""
    settings = (alpha, max_gap, floor, ignore_index, update)
    return launch_step(masked_logits, target, values, counts, *settings, None)


@triton.jit(do_not_specialize=["size"])
def _scale_rows(
    grad,  # (size,)
    scales,  # (rows,) float64
    out,  # (rows, size)
    rows,
    size,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    size = aligned(size, ALIGNED)
    # One program reads its block of the gradient once and writes it into its share of the rows.
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gradient = tl.load(grad + at, mask=inside, other=0.0)
    if gradient.dtype != tl.float64:
        gradient = gradient.to(tl.float32)
    target = out + tl.program_id(1).to(tl.int64) * size + at
    step = tl.num_programs(1).to(tl.int64) * size
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        scale = tl.load(scales + row).to(gradient.dtype)
        scaled = tl.where(scale == 0.0, 0.0, scale * gradient)
        tl.store(target, scaled.to(out.dtype.element_ty), mask=inside)
        target += step


def modulate_backward(
    grad: Tensor,  # (B, C)
    subset_scales: Tensor,  # (2**M - 1,) float64
) -> Tensor:
    """c_S * g for every subset, (2**M - 1, B, C) of grad's dtype, in one launch."""
    grad, subset_scales = grad.contiguous(), subset_scales.contiguous()
    rows, size = subset_scales.shape[0], grad.numel()
    out = grad.new_empty((rows, *grad.shape))
    if out.numel() == 0:
        return out
    blocks = triton.cdiv(size, _BLOCK)
    shares = parts_that_fill(blocks, rows, resident_programs(grad.device))  # a short gradient leaves the GPU idle
    with device_guard(grad):
        _scale_rows[(blocks, shares)](
            *(grad, subset_scales, out, rows, size),
            BLOCK=_BLOCK,
            ALIGNED=are_aligned(grad.shape[-1]),
            enable_fp_fusion=True,
        )
    return out
