"""The first launch of a step in Triton: reads the masked logits once, and leaves what each program found.

Programs take groups of samples (`_score`), or of few samples with many classes a share of one (`_score_shares`).
"""

import triton
import triton.language as tl
from agm.kernels.launching import aligned, float64
from agm.kernels.responses import _add_tile, _beaten_by, _cost, _is_odd, _possible, _shift, _unscale, _without

RESPONSE_SCALE = 4.0  # responses are kept divided by it
_SCALE = tl.constexpr(RESPONSE_SCALE)
_SPREAD_SCALE = tl.constexpr(2.0**-32)  # differences of logits that are finite may not be, nor their sum

# What varies with the size of the last batch is not compiled in.
_BY_BATCH = ["batch", "row_stride", "batch_stride"]


@triton.jit
def _look_at_classes(
    logits,  # as in `_look`, as what is not described below
    row_stride,
    weights,
    label,
    known,
    target,  # (PADDED, samples)
    joint_target,  # (samples,)
    begin,
    end,
    class_weight,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    LOSS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    EXACT: tl.constexpr,  # with the rules for what is no number; what is found without is wrong where a sum is NaN
):
    modality = tl.arange(0, PADDED)
    largest = tl.full([PADDED, SAMPLES], float("-inf"), DTYPE)
    total = tl.zeros([PADDED, SAMPLES], DTYPE)
    beaten = tl.zeros([PADDED, SAMPLES], tl.int32)
    joint_beaten = tl.zeros([SAMPLES], tl.int32)
    joint_largest = tl.full([SAMPLES], float("-inf"), DTYPE)
    joint_total = tl.zeros([SAMPLES], DTYPE)
    spread = tl.zeros([SAMPLES], tl.float64)
    if SMOOTHING:
        aim = tl.broadcast_to((joint_target * _SPREAD_SCALE)[:, None], [SAMPLES, CLASSES])
        down = tl.full([SAMPLES, CLASSES], -_SPREAD_SCALE, DTYPE)
    for start in range(begin, end, CLASSES):
        index = start + tl.arange(0, CLASSES)
        inside = known[:, None] & (index < end)[None, :]  # (SAMPLES, CLASSES)
        at = logits[:, None] + index[None, :]
        response = tl.zeros([PADDED, SAMPLES, CLASSES], DTYPE)
        joint = tl.zeros([SAMPLES, CLASSES], DTYPE)
        impossible = tl.zeros([SAMPLES, CLASSES], tl.int1)
        for row in range(ROWS):
            weight = tl.load(weights + row * PADDED + modality)
            joint = tl.load(at + row * row_stride, mask=inside, other=0.0).to(DTYPE)
            own = joint
            if EXACT:
                own, impossible = _possible(joint, impossible)
            response = tl.fma(
                tl.broadcast_to(weight[:, None, None], [PADDED, SAMPLES, CLASSES]),
                tl.broadcast_to(own[None, :, :], [PADDED, SAMPLES, CLASSES]),
                response,
            )
        if EXACT:
            response = _without(response, impossible[None, :, :])
        worse, joint_own = _beaten_by(joint, index[None, :], inside, joint_target, label, start, EXACT)
        joint_beaten = joint_beaten | worse
        largest, total, beaten = _add_tile(
            *(response, index, inside, target, label, start, largest, total, beaten, _SCALE, EXACT)
        )
        if SMOOTHING:
            away = tl.fma(joint, down, aim)
            if class_weight is not None:
                away *= tl.load(class_weight + index, mask=index < end, other=0.0)[None, :]
            spread += tl.sum(tl.where(inside, away, 0.0), 1).to(tl.float64)
        if LOSS:
            joint = tl.where(inside, joint, float("-inf"))
            joint_new = tl.maximum(joint_largest, joint_own)
            joint_shift = _shift(joint_new)
            joint_total *= tl.exp(joint_largest - joint_shift)
            joint_total += tl.sum(tl.exp(joint - joint_shift[:, None]), 1)
            joint_largest = joint_new
    return largest, total, beaten, joint_beaten, joint_largest, joint_total, spread / _SPREAD_SCALE


@triton.jit
def _look(
    logits,  # (samples,) pointers to the first class of each sample
    row_stride,
    weights,  # (ROWS, PADDED) of DTYPE, over _SCALE
    label,  # (samples,)
    known,  # (samples,) whether the label exists and is not ignored
    begin,
    end,
    class_weight,  # (classes,) or None: all 1
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    LOSS: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """Classes begin ... end of some samples: running maximum and sum of exponentials, and who beats the label.

    With LOSS the same of the joint logits, and with SMOOTHING the sum of w_c (z_label - z_c).
    """
    modality = tl.arange(0, PADDED)
    row_stride = tl.cast(row_stride, tl.int64)  # 62 rows of it may pass 2**31
    target = tl.zeros([PADDED, SAMPLES], DTYPE)
    joint_target = tl.zeros([SAMPLES], DTYPE)
    impossible_target = tl.zeros([SAMPLES], tl.int1)
    for row in range(ROWS):
        weight = tl.load(weights + row * PADDED + modality)
        joint_target = tl.load(logits + row * row_stride + label, mask=known, other=0.0).to(DTYPE)
        own, impossible_target = _possible(joint_target, impossible_target)
        # An explicit fused operation here and below: equal logits must give equal responses, or ties break.
        target = tl.fma(
            tl.broadcast_to(weight[:, None], [PADDED, SAMPLES]),
            tl.broadcast_to(own[None, :], [PADDED, SAMPLES]),
            target,
        )
    target = _without(target, impossible_target[None, :])

    largest, total, beaten, joint_beaten, joint_largest, joint_total, spread = _look_at_classes(
        *(logits, row_stride, weights, label, known, target, joint_target, begin, end, class_weight),
        *(ROWS, PADDED, SAMPLES, CLASSES, DTYPE, LOSS, SMOOTHING, False),
    )
    if _is_odd(total):
        largest, total, beaten, joint_beaten, joint_largest, joint_total, spread = _look_at_classes(
            *(logits, row_stride, weights, label, known, target, joint_target, begin, end, class_weight),
            *(ROWS, PADDED, SAMPLES, CLASSES, DTYPE, LOSS, SMOOTHING, True),
        )
    largest, total, target = _unscale(largest, total, target, _SCALE)
    return largest, total, target, beaten, joint_beaten, joint_largest, joint_total, joint_target, spread


@triton.jit
def _loss_of(
    largest,  # (samples,) of the joint logits
    total,
    target,
    sample,
    label,
    exists,
    counted,
    known,
    batch,
    class_weight,
    normalizer,
):
    """Leaves the normalizers of some samples; returns their costs -log p and the weights of their labels, float64."""
    log_sum = tl.log(total)
    tl.store(normalizer + sample, tl.where(known, largest, 0.0), mask=exists)
    tl.store(normalizer + batch + sample, tl.where(known, log_sum, 0.0), mask=exists)
    cost = (log_sum + (largest - target)).to(tl.float64)
    if class_weight is not None:
        weight = tl.load(class_weight + label, mask=known, other=0.0).to(tl.float64)
    else:
        weight = tl.where(known, 1.0, 0.0).to(tl.float64)
    weight = tl.where(counted & (known == 0), float("nan"), weight)  # a class that does not exist
    return tl.where(known, cost, 0.0), weight


@triton.jit
def _leave(
    costs,  # (programs, PADDED) float64
    hits,  # (programs, 2 * PADDED) int64: hits of each modality, then of the joint logits, then samples
    program,
    cost,  # (PADDED, samples) float64
    hit,  # (PADDED, samples) int64
    joint_hit,  # (samples,) int64
    used,  # (samples,) int64
    PADDED: tl.constexpr,
):
    modality = tl.arange(0, PADDED)
    tl.store(costs + program * PADDED + modality, tl.sum(cost, 1))
    tl.store(hits + program * 2 * PADDED + modality, tl.sum(hit, 1))
    tl.store(hits + program * 2 * PADDED + PADDED, tl.sum(joint_hit, 0))
    tl.store(hits + program * 2 * PADDED + PADDED + 1, tl.sum(used, 0))


@triton.jit(do_not_specialize=["ignore_index", "cap", *_BY_BATCH])
def _score(
    logits,  # (ROWS, batch, classes), the last stride being 1
    labels,  # (batch,) int64
    weights,
    costs,
    hits,
    batch,
    classes,
    row_stride,
    batch_stride,
    ignore_index,
    cap,
    class_weight,
    normalizer,  # (2, batch): largest joint logit, log of the sum of exponentials
    losses,  # (programs, 4) float64: sums of w_y * cost, cost, spread and w_y
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    LOSS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    # A grid-stride loop over groups of samples.
    row_stride, batch_stride = aligned(row_stride, ALIGNED), aligned(batch_stride, ALIGNED)
    cap = float64(cap).to(DTYPE)
    cost = tl.zeros([PADDED, SAMPLES], tl.float64)
    hit = tl.zeros([PADDED, SAMPLES], tl.int64)
    joint_hit = tl.zeros([SAMPLES], tl.int64)
    used = tl.zeros([SAMPLES], tl.int64)
    weighted = tl.zeros([SAMPLES], tl.float64)
    plain = tl.zeros([SAMPLES], tl.float64)
    spreads = tl.zeros([SAMPLES], tl.float64)
    weight_sum = tl.zeros([SAMPLES], tl.float64)
    for first in range(tl.program_id(0) * SAMPLES, batch, tl.num_programs(0) * SAMPLES):
        sample = first + tl.arange(0, SAMPLES)
        exists = sample < batch
        label = tl.load(labels + sample, mask=exists, other=0)
        counted = exists & (label != ignore_index)
        known = counted & (label >= 0) & (label < classes)
        largest, total, target, beaten, joint_beaten, joint_largest, joint_total, joint_target, spread = _look(
            logits + sample.to(tl.int64) * batch_stride,
            row_stride,
            weights,
            label,
            known,
            0,
            classes,
            class_weight,
            ROWS,
            PADDED,
            SAMPLES,
            CLASSES,
            DTYPE,
            LOSS,
            SMOOTHING,
        )
        own = tl.where(known[None, :], _cost(largest, total, target, cap), float("nan")).to(tl.float64)
        cost += tl.where(counted[None, :], own, 0.0)
        hit += (known[None, :] & (beaten == 0)).to(tl.int64)
        joint_hit += (known & (joint_beaten == 0)).to(tl.int64)
        used += counted.to(tl.int64)
        if LOSS:
            own_cost, own_weight = _loss_of(
                *(joint_largest, joint_total, joint_target, sample, label, exists, counted, known),
                *(batch, class_weight, normalizer),
            )
            weighted += own_weight * own_cost
            plain += own_cost
            spreads += tl.where(known, spread, 0.0)
            weight_sum += own_weight
    if LOSS:
        at = losses + tl.program_id(0) * 4
        tl.store(at, tl.sum(weighted, 0))
        tl.store(at + 1, tl.sum(plain, 0))
        tl.store(at + 2, tl.sum(spreads, 0))
        tl.store(at + 3, tl.sum(weight_sum, 0))
    _leave(costs, hits, tl.program_id(0), cost, hit, joint_hit, used, PADDED)


@triton.jit
def _leave_share(
    found,  # (3, shares, PADDED, batch): largest, sum of exponentials, target
    beaten_by,  # (shares, 2 * PADDED, batch) int32: by modality, then joint
    sample,  # (samples,)
    batch,
    largest,  # (PADDED, samples)
    total,
    target,
    beaten,
    joint_beaten,  # (samples,)
    PADDED: tl.constexpr,
):
    modality = tl.arange(0, PADDED)[:, None]
    at = found + (tl.program_id(1) * PADDED + modality) * batch + sample[None, :]
    size = tl.num_programs(1) * PADDED * batch
    tl.store(at, largest)
    tl.store(at + size, total)
    tl.store(at + 2 * size, target)
    flags = beaten_by + tl.program_id(1) * 2 * PADDED * batch
    tl.store(flags + modality * batch + sample[None, :], beaten)
    tl.store(flags + PADDED * batch + sample, joint_beaten)


@triton.jit(do_not_specialize=["ignore_index", "share", *_BY_BATCH])
def _score_shares(
    logits,
    labels,
    weights,
    found,  # (3, shares, PADDED, batch): largest, sum of exponentials, target
    beaten_by,  # (shares, 2 * PADDED, batch) int32: by modality, then joint
    batch,
    classes,
    share,  # classes of each program, as multiples of CLASSES
    row_stride,
    batch_stride,
    ignore_index,
    class_weight,
    joint_found,  # (4, shares, batch) float64: as `found` for the joint logits, then the spread
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    CLASSES: tl.constexpr,
    DTYPE: tl.constexpr,
    LOSS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row_stride, batch_stride = aligned(row_stride, ALIGNED), aligned(batch_stride, ALIGNED)
    # Few samples with many classes: one program works on one share of the classes of one sample.
    sample = tl.program_id(0) + tl.arange(0, 1)
    label = tl.load(labels + sample)
    known = (label != ignore_index) & (label >= 0) & (label < classes)
    begin = tl.program_id(1) * share * CLASSES
    largest, total, target, beaten, joint_beaten, joint_largest, joint_total, joint_target, spread = _look(
        logits + sample.to(tl.int64) * batch_stride,
        row_stride,
        weights,
        label,
        known,
        begin,
        tl.minimum(begin + share * CLASSES, classes),
        class_weight,
        ROWS,
        PADDED,
        1,
        CLASSES,
        DTYPE,
        LOSS,
        SMOOTHING,
    )
    _leave_share(found, beaten_by, sample, batch, largest, total, target, beaten, joint_beaten, PADDED)
    if LOSS:
        at = joint_found + tl.program_id(1) * batch + sample
        size = tl.num_programs(1) * batch
        tl.store(at, joint_largest)
        tl.store(at + size, joint_total)
        tl.store(at + 2 * size, joint_target)
        tl.store(at + 3 * size, spread)
