"""The modulation of additive fusions in Triton, for up to 16 modalities.

`agm.ops.reference` is the specification. `_score_additive` (of many classes `_score_additive_shares`) reads p_m once
from memory; how the step is made of what it leaves is in `agm.kernels.finishing`. There is no CUDA C++ version: Triton
serves NVIDIA and AMD alike, and where it is missing the reference does the same O(M * B * C) work in more launches.
"""

import math

import torch
import triton
import triton.language as tl
from agm.kernels.additive_gradients import modulate_additive_backward
from agm.kernels.finishing import _finish, _finish_shares
from agm.kernels.launching import (
    accumulation_dtype,
    aligned,
    are_aligned,
    bits,
    device_guard,
    even_programs,
    float64,
    resident_programs,
    unit_class_stride,
)
from agm.kernels.modulate import _PROGRAMS, _SAMPLES, shares_of
from agm.kernels.responses import _add_tile, _beaten_by, _cost, _is_odd, _possible, _unscale, _without
from agm.kernels.scoring import _leave, _leave_share
from torch import Tensor

__all__ = ["MAX_MODALITIES", "modulate_additive", "modulate_additive_backward"]

MAX_MODALITIES = 16

# By modalities, rounded up to a power of two: p_m that a program holds of each, samples * classes.
_TILE = {2: 512, 4: 256, 8: 128, 16: 32}
_MAX_STATES = 32  # modalities * samples of that tile: each of them takes registers of its own


def tile_of(padded: int, double: bool) -> int:
    """Classes that a program looks at together; numbers of twice the width take twice the registers."""
    return _TILE[padded] // 2 if double and padded >= 8 else _TILE[padded]


_SCALE = tl.constexpr(64.0)  # responses are kept divided by it: a sum over 16 modalities does not overflow
_INVERSE = tl.constexpr(1 / 64)

# What varies with the size of the last batch is not compiled in.
_BY_BATCH = ["batch", "row_stride", "batch_stride", "joint_stride"]


@triton.jit
def _responses(
    present,  # (samples, classes) pointers to p_0
    absent,  # (1 or samples, classes) pointers to q_0
    bias,  # (1 or samples, classes) pointers to b, or None
    joint_logits,  # (samples, classes) pointers to the joint logits that were given, or None
    row_stride,
    absent_stride,
    needed,  # (samples, classes) which to read of `present` and of `joint_logits`
    inside,  # (1 or samples, classes) which to read of `absent` and of `bias`
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    DTYPE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The joint logits, and the responses p_m - q_m + (z_full - sum_j (p_j - q_j)) / M, divided by _SCALE.

    With EXACT, a class of which a logit is -inf has responses of -inf; without, some that are NaN or infinitely large.
    """
    # One modality after the other: the order of a sum over a dimension would depend on the other dimensions, and
    # equal logits must give equal responses, or ties break. p_m is read once more below, from the cache.
    joint = tl.zeros(present.shape, DTYPE)
    rest = tl.zeros(present.shape, DTYPE)
    impossible = tl.zeros(present.shape, tl.int1)
    for m in range(MODALITIES):
        own = tl.load(present + m * row_stride, mask=needed, other=0.0).to(DTYPE)
        other = tl.load(absent + m * absent_stride, mask=inside, other=0.0).to(DTYPE)
        joint += own
        if EXACT:
            own, impossible = _possible(own, impossible)
            other, impossible = _possible(tl.broadcast_to(other, present.shape), impossible)
        rest += own * _INVERSE - other * _INVERSE
    if joint_logits is not None:
        joint = tl.load(joint_logits, mask=needed, other=0.0).to(DTYPE)
    elif bias is not None:
        joint += tl.load(bias, mask=inside, other=0.0).to(DTYPE)
    together = joint
    if EXACT:
        together, impossible = _possible(joint, impossible)
    rest = together * _INVERSE - rest

    modality = tl.arange(0, PADDED)[:, None, None]
    real = modality < MODALITIES
    owns = tl.load(present[None, :, :] + modality * row_stride, mask=real & needed[None, :, :], other=0.0)
    others = tl.load(absent[None, :, :] + modality * absent_stride, mask=real & inside[None, :, :], other=0.0)
    owns, others = owns.to(DTYPE), tl.broadcast_to(others.to(DTYPE), owns.shape)
    if EXACT:
        owns, _ = _possible(owns, impossible[None, :, :])
        others, _ = _possible(others, impossible[None, :, :])
    difference = owns * _INVERSE - others * _INVERSE
    inverse = tl.full(difference.shape, 1.0, DTYPE) / MODALITIES
    # Fused by name, since the compiler may fuse in one place and not in another.
    response = tl.fma(tl.broadcast_to(rest[None, :, :], difference.shape), inverse, difference)
    if EXACT:
        response = _without(response, impossible[None, :, :])
    return joint, response


@triton.jit
def _look_at_classes(
    present,  # as in `_look`, as what is not described below
    absent,
    bias,
    joint_logits,
    out,
    row_stride,
    absent_stride,
    label,
    exists,
    known,
    target,  # (PADDED, samples)
    joint_target,  # (samples,)
    begin,
    end,
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    EXACT: tl.constexpr,  # with the rules for what is no number; what is found without is wrong where a sum is NaN
):
    largest = tl.full([PADDED, SAMPLES], float("-inf"), DTYPE)
    total = tl.zeros([PADDED, SAMPLES], DTYPE)
    beaten = tl.zeros([PADDED, SAMPLES], tl.int32)
    joint_beaten = tl.zeros([SAMPLES], tl.int32)
    for start in range(begin, end, CLASSES):
        index = start + tl.arange(0, CLASSES)
        here = exists[:, None] & (index < end)[None, :]
        inside = here & known[:, None]
        joint, response = _responses(
            present[:, None] + index[None, :],
            (absent + index)[None, :],
            None if bias is None else (bias + index)[None, :],
            None if joint_logits is None else joint_logits[:, None] + index[None, :],
            row_stride,
            absent_stride,
            here if joint_logits is None else inside,  # samples without a class have joint logits as well
            (index < end)[None, :],
            *(MODALITIES, PADDED, DTYPE, EXACT),
        )
        if joint_logits is None and not EXACT:
            tl.store(out[:, None] + index[None, :], joint.to(out.dtype.element_ty), mask=here)
        worse, _ = _beaten_by(joint, index[None, :], inside, joint_target, label, start, EXACT)
        joint_beaten = joint_beaten | worse
        largest, total, beaten = _add_tile(
            *(response, index, inside, target, label, start, largest, total, beaten, _SCALE, EXACT)
        )
    return largest, total, beaten, joint_beaten


@triton.jit
def _look(
    present,  # (samples,) pointers to p_0 of the first class of each sample
    absent,  # (MODALITIES, classes)
    bias,  # (classes,) or None
    joint_logits,  # (samples,) pointers to the first class of each sample, or None
    out,  # (samples,) pointers to where the joint logits go, where they are not given
    row_stride,
    absent_stride,
    label,  # (samples,)
    exists,  # (samples,)
    known,  # (samples,) whether the label exists and is not ignored
    begin,
    end,
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Classes begin ... end of some samples: running maximum and sum of exponentials, and who beats the label."""
    row_stride = tl.cast(row_stride, tl.int64)
    absent_stride = tl.cast(absent_stride, tl.int64)
    joint_target, target = _responses(
        (present + label)[:, None],
        (absent + label)[:, None],
        None if bias is None else (bias + label)[:, None],
        None if joint_logits is None else (joint_logits + label)[:, None],
        row_stride,
        absent_stride,
        known[:, None],
        known[:, None],
        MODALITIES,
        PADDED,
        DTYPE,
        True,
    )
    joint_target = tl.reshape(joint_target, [SAMPLES])
    target = tl.reshape(target, [PADDED, SAMPLES])

    largest, total, beaten, joint_beaten = _look_at_classes(
        *(present, absent, bias, joint_logits, out, row_stride, absent_stride, label, exists, known),
        *(target, joint_target, begin, end, MODALITIES, PADDED, SAMPLES, CLASSES, DTYPE, False),
    )
    if _is_odd(total):
        largest, total, beaten, joint_beaten = _look_at_classes(
            *(present, absent, bias, joint_logits, out, row_stride, absent_stride, label, exists, known),
            *(target, joint_target, begin, end, MODALITIES, PADDED, SAMPLES, CLASSES, DTYPE, True),
        )
    largest, total, target = _unscale(largest, total, target, _SCALE)
    return largest, total, target, beaten, joint_beaten


@triton.jit(do_not_specialize=["ignore_index", "cap", *_BY_BATCH])
def _score_additive(
    present,  # (MODALITIES, batch, classes), the last stride being 1
    absent,
    bias,
    joint_logits,
    out,
    labels,  # (batch,) int64
    costs,
    hits,
    batch,
    classes,
    row_stride,
    batch_stride,
    absent_stride,
    joint_stride,
    ignore_index,
    cap,
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row_stride, batch_stride = aligned(row_stride, ALIGNED), aligned(batch_stride, ALIGNED)
    # A grid-stride loop over groups of samples.
    cap = float64(cap).to(DTYPE)
    cost = tl.zeros([PADDED, SAMPLES], tl.float64)
    hit = tl.zeros([PADDED, SAMPLES], tl.int64)
    joint_hit = tl.zeros([SAMPLES], tl.int64)
    used = tl.zeros([SAMPLES], tl.int64)
    for first in range(tl.program_id(0) * SAMPLES, batch, tl.num_programs(0) * SAMPLES):
        sample = first + tl.arange(0, SAMPLES)
        exists = sample < batch
        label = tl.load(labels + sample, mask=exists, other=0)
        counted = exists & (label != ignore_index)
        known = counted & (label >= 0) & (label < classes)
        row = sample.to(tl.int64)
        largest, total, target, beaten, joint_beaten = _look(
            present + row * batch_stride,
            absent,
            bias,
            None if joint_logits is None else joint_logits + row * joint_stride,
            out + row * classes,
            row_stride,
            absent_stride,
            label,
            exists,
            known,
            *(0, classes, MODALITIES, PADDED, SAMPLES, CLASSES, DTYPE),
        )
        own = tl.where(known[None, :], _cost(largest, total, target, cap), float("nan")).to(tl.float64)
        cost += tl.where(counted[None, :], own, 0.0)
        hit += (known[None, :] & (beaten == 0)).to(tl.int64)
        joint_hit += (known & (joint_beaten == 0)).to(tl.int64)
        used += counted.to(tl.int64)
    _leave(costs, hits, tl.program_id(0), cost, hit, joint_hit, used, PADDED)


@triton.jit(do_not_specialize=["ignore_index", "share", *_BY_BATCH])
def _score_additive_shares(
    present,
    absent,
    bias,
    joint_logits,
    out,
    labels,
    found,  # (3, shares, PADDED, batch): largest, sum of exponentials, target
    beaten_by,  # (shares, 2 * PADDED, batch) int32: by modality, then joint
    batch,
    classes,
    share,  # classes of each program, as multiples of CLASSES
    row_stride,
    batch_stride,
    absent_stride,
    joint_stride,
    ignore_index,
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row_stride, batch_stride = aligned(row_stride, ALIGNED), aligned(batch_stride, ALIGNED)
    # Few samples with many classes: one program works on one share of the classes of one sample.
    sample = tl.program_id(0) + tl.arange(0, 1)
    label = tl.load(labels + sample)
    known = (label != ignore_index) & (label >= 0) & (label < classes)
    begin = tl.program_id(1) * share * CLASSES
    row = sample.to(tl.int64)
    largest, total, target, beaten, joint_beaten = _look(
        present + row * batch_stride,
        absent,
        bias,
        None if joint_logits is None else joint_logits + row * joint_stride,
        out + row * classes,
        row_stride,
        absent_stride,
        label,
        sample < batch,
        known,
        begin,
        tl.minimum(begin + share * CLASSES, classes),
        MODALITIES,
        PADDED,
        1,
        CLASSES,
        DTYPE,
    )
    _leave_share(found, beaten_by, sample, batch, largest, total, target, beaten, joint_beaten, PADDED)


def modulate_additive(
    present: Tensor,  # (M, B, C)
    absent: Tensor,  # (M, C)
    bias: Tensor | None,  # (C,)
    joint_logits: Tensor | None,  # (B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
) -> tuple[Tensor, Tensor]:
    """One step in two launches; returns the joint logits, (0, C) where given, and the scales (2, M + 1) float64."""
    modalities, batch, classes = present.shape
    if modalities > MAX_MODALITIES:
        raise ValueError(f"Expected at most {MAX_MODALITIES} modalities for the Triton kernel, but got {modalities}.")
    given = joint_logits is not None
    logits = present.new_empty(0 if given else batch, classes)
    present, absent = unit_class_stride(present), unit_class_stride(absent)
    joint_logits = unit_class_stride(joint_logits) if given else None
    bias = None if given or bias is None else bias.contiguous()
    labels = target.contiguous()
    scales = values.new_empty(2, modalities + 1)
    cap = bits(-math.log(floor) if floor > 0 else math.inf)
    wide, dtype = accumulation_dtype(present.dtype)
    padded = triton.next_power_of_2(modalities)
    tile = tile_of(padded, wide == torch.float64)
    block = min(tile, triton.next_power_of_2(max(classes, 1)))
    resident = resident_programs(present.device)
    shares = shares_of(batch, classes, block, resident)
    inputs = (present, absent, bias, joint_logits, logits, labels)
    strides = (*present.stride()[:2], absent.stride(0), joint_logits.stride(0) if given else 0)
    step = (None, values, counts, scales, bits(alpha), bits(max_gap))  # no weights of subsets
    common = {"MODALITIES": modalities, "PADDED": padded, "enable_fp_fusion": True}
    fits = {"ALIGNED": are_aligned(*strides[:2]), "DTYPE": dtype}
    finish = {"SCALES": "additive beside joint logits" if given else "additive", "UPDATE": update, **common}
    with device_guard(present):
        if shares:
            share = triton.cdiv(triton.cdiv(classes, block), shares)
            shares = triton.cdiv(classes, share * block)
            found = present.new_empty((3, shares, padded, batch), dtype=wide)
            beaten_by = present.new_empty((shares, 2 * padded, batch), dtype=torch.int32)
            _score_additive_shares[(batch, shares)](
                *(*inputs, found, beaten_by, batch, classes, share, *strides, ignore_index),
                CLASSES=block,
                **fits,
                **common,
            )
            _finish_shares[(1,)](
                *(found, beaten_by, labels, batch, classes, shares, ignore_index, cap, *step),
                SAMPLES=_SAMPLES,
                DTYPE=dtype,
                **finish,
            )
            return logits, scales
        samples = min(tile // block, _MAX_STATES // padded)
        programs = even_programs(triton.cdiv(batch, samples), resident)
        costs = present.new_empty((programs, padded), dtype=torch.float64)
        hits = present.new_empty((programs, 2 * padded), dtype=torch.int64)
        _score_additive[(programs,)](
            *(*inputs, costs, hits, batch, classes, *strides, ignore_index, cap),
            SAMPLES=samples,
            CLASSES=block,
            **fits,
            **common,
        )
        _finish[(1,)](costs, hits, programs, *step, BLOCK=_PROGRAMS, **finish)
    return logits, scales
