"""The modulation in Triton: NVIDIA and AMD GPUs, and CPU tensors under `TRITON_INTERPRET=1`.

`agm.ops.reference` is the specification. Two launches make a step: `_score` reads the masked logits once and
leaves what each program added up, `_finish` makes the step of it. With LOSS they also make the cross-entropy of the
joint logits (`agm.kernels.modulate_cross_entropy`).
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from agm.kernels.launching import ENOUGH_PROGRAMS, accumulation_dtype, bits, device_guard, unit_class_stride
from torch import Tensor

__all__ = ["MAX_MODALITIES", "Loss", "launch_step", "modulate", "modulate_backward", "subset_weights"]

MAX_MODALITIES = 6

_BLOCK = 1024  # elements of a gradient that a program of the backward holds
_TILE = {2: 1024, 3: 512, 4: 512, 5: 256, 6: 256}  # logits of one subset that a program holds: samples * classes
_MAX_SAMPLES = 16  # of that tile: each of them takes registers of its own
_MAX_SAMPLES_WITH_LOSS = 8
_MAX_PROGRAMS = 1024  # of `_score`, since a single program reads what they leave
_SAMPLES = 64  # that `_finish_shares` merges at a time
_PROGRAMS = 64  # whose findings `_finish` adds up at a time


_SCALE = tl.constexpr(4.0)  # responses are kept divided by it


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


@triton.jit
def _float64(bits):
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _shift(largest):
    # What to subtract in exponents: before any finite number came, exp(-inf - -inf) would be NaN.
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def _beats(logit, index, target, label):
    # Whether a class keeps argmax from being the label: NaN is the largest, and the first of equals wins.
    number = (logit < target) | ((logit == target) & (index > label))
    beaten = tl.where(target == target, number == 0, (logit != logit) & (index < label))
    return beaten & (index != label)


@triton.jit
def _possible(logit, impossible):
    """The logit, or 0 in place of -inf, and whether this or an earlier one of the class was -inf."""
    gone = logit == float("-inf")
    return tl.where(gone, 0.0, logit), impossible | gone


@triton.jit
def _without(response, impossible):
    # -inf for the classes that a sample cannot have, where their other logits are finite.
    return tl.where(impossible & (response - response == 0.0), float("-inf"), response)


@triton.jit
def _unscale(largest, total, target, SCALE: tl.constexpr):
    # Responses that cannot be stored make a step a skipped one, as what is no number does.
    largest = largest * SCALE
    return largest, tl.where(largest == float("inf"), float("nan"), total), target * SCALE


@triton.jit
def _add_tile(
    response,  # (PADDED, SAMPLES, CLASSES), divided by SCALE: no sum of logits overflows on the way
    index,  # (CLASSES,)
    inside,  # (SAMPLES, CLASSES)
    target,  # (PADDED, SAMPLES)
    label,  # (SAMPLES,)
    largest,  # (PADDED, SAMPLES), as the two below
    total,
    beaten,
    SCALE: tl.constexpr,
):
    worse = _beats(response, index[None, None, :], target[:, :, None], label[None, :, None]) & inside[None, :, :]
    beaten = beaten | tl.max(worse.to(tl.int32), 2)
    response = tl.where(inside[None, :, :], response, float("-inf"))
    new = tl.maximum(largest, tl.max(response, 2))
    shift = _shift(new)
    total = total * tl.exp((largest - shift) * SCALE) + tl.sum(tl.exp((response - shift[:, :, None]) * SCALE), 2)
    return new, total, beaten


@triton.jit
def _look(
    logits,  # (samples,) pointers to the first class of each sample
    row_stride,
    weights,  # (ROWS, PADDED) float64
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
        weight = (tl.load(weights + row * PADDED + modality) / _SCALE).to(DTYPE)
        joint_target = tl.load(logits + row * row_stride + label, mask=known, other=0.0).to(DTYPE)
        own, impossible_target = _possible(joint_target, impossible_target)
        # An explicit fused operation here and below: equal logits must give equal responses, or ties break.
        target = tl.fma(
            tl.broadcast_to(weight[:, None], [PADDED, SAMPLES]),
            tl.broadcast_to(own[None, :], [PADDED, SAMPLES]),
            target,
        )
    target = _without(target, impossible_target[None, :])

    largest = tl.full([PADDED, SAMPLES], float("-inf"), DTYPE)
    total = tl.zeros([PADDED, SAMPLES], DTYPE)
    beaten = tl.zeros([PADDED, SAMPLES], tl.int32)
    joint_beaten = tl.zeros([SAMPLES], tl.int32)
    joint_largest = tl.full([SAMPLES], float("-inf"), DTYPE)
    joint_total = tl.zeros([SAMPLES], DTYPE)
    spread = tl.zeros([SAMPLES], tl.float64)
    for start in range(begin, end, CLASSES):
        index = start + tl.arange(0, CLASSES)
        inside = known[:, None] & (index < end)[None, :]  # (SAMPLES, CLASSES)
        at = logits[:, None] + index[None, :]
        response = tl.zeros([PADDED, SAMPLES, CLASSES], DTYPE)
        joint = tl.zeros([SAMPLES, CLASSES], DTYPE)
        impossible = tl.zeros([SAMPLES, CLASSES], tl.int1)
        for row in range(ROWS):
            weight = (tl.load(weights + row * PADDED + modality) / _SCALE).to(DTYPE)
            joint = tl.load(at + row * row_stride, mask=inside, other=0.0).to(DTYPE)
            own, impossible = _possible(joint, impossible)
            response = tl.fma(
                tl.broadcast_to(weight[:, None, None], [PADDED, SAMPLES, CLASSES]),
                tl.broadcast_to(own[None, :, :], [PADDED, SAMPLES, CLASSES]),
                response,
            )
        response = _without(response, impossible[None, :, :])
        worse = _beats(joint, index[None, :], joint_target[:, None], label[:, None]) & inside
        joint_beaten = joint_beaten | tl.max(worse.to(tl.int32), 1)
        largest, total, beaten = _add_tile(response, index, inside, target, label, largest, total, beaten, _SCALE)
        if SMOOTHING:
            away = joint_target[:, None] - joint
            if class_weight is not None:
                away *= tl.load(class_weight + index, mask=index < end, other=0.0)[None, :]
            spread += tl.sum(tl.where(inside, away, 0.0), 1).to(tl.float64)
        if LOSS:
            joint = tl.where(inside, joint, float("-inf"))
            joint_new = tl.maximum(joint_largest, tl.max(joint, 1))
            joint_shift = _shift(joint_new)
            joint_total *= tl.exp(joint_largest - joint_shift)
            joint_total += tl.sum(tl.exp(joint - joint_shift[:, None]), 1)
            joint_largest = joint_new
    largest, total, target = _unscale(largest, total, target, _SCALE)
    return largest, total, target, beaten, joint_beaten, joint_largest, joint_total, joint_target, spread


@triton.jit
def _cost(largest, total, target, cap):
    cost = tl.log(total) + (largest - target)
    return tl.where(cost > cap, cap, cost)  # NaN stays NaN


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


@triton.jit(do_not_specialize=["ignore_index", "cap"])
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
):
    # Each program works on every so-manieth group of samples.
    cap = _float64(cap).to(DTYPE)
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


@triton.jit(do_not_specialize=["ignore_index"])
def _score_shares(
    logits,
    labels,
    weights,
    found,  # (3, shares, PADDED, batch): largest, sum of exponentials, target
    beaten_by,  # (shares, 2 * PADDED, batch) int32: by modality, then joint
    batch,
    classes,
    share,  # classes of each program
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
):
    # Few samples with many classes: one program works on one share of the classes of one sample.
    sample = tl.program_id(0) + tl.arange(0, 1)
    label = tl.load(labels + sample)
    known = (label != ignore_index) & (label >= 0) & (label < classes)
    begin = tl.program_id(1) * share
    largest, total, target, beaten, joint_beaten, joint_largest, joint_total, joint_target, spread = _look(
        logits + sample.to(tl.int64) * batch_stride,
        row_stride,
        weights,
        label,
        known,
        begin,
        tl.minimum(begin + share, classes),
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


@triton.jit
def _ratio(scores, real, MODALITIES: tl.constexpr):
    return tl.exp((tl.sum(tl.where(real, scores, 0.0), 0) - scores * MODALITIES) / (MODALITIES - 1))


@triton.jit
def _write_subset_scales(
    coefficient,  # (PADDED,) float64
    weights,
    scales,  # (2**MODALITIES - 1,) float64
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
):
    modality = tl.arange(0, PADDED)
    subset = tl.arange(0, 2**MODALITIES)
    table = weights + subset[:, None] * PADDED + modality[None, :]
    real = (subset < 2**MODALITIES - 1)[:, None] & (modality < MODALITIES)[None, :]
    weight = tl.load(table, mask=real, other=0.0)
    # Around 1, so that unmodulated training gives exactly 0, and 1 in the last row.
    scale = tl.sum(weight * (coefficient - 1.0)[None, :], 1) + (subset == 2**MODALITIES - 2).to(tl.float64)
    tl.store(scales + subset, scale, mask=subset < 2**MODALITIES - 1)


@triton.jit
def _write_additive_scales(
    coefficient,  # (PADDED,) float64, 1 behind the modalities
    scales,  # (2, MODALITIES + 1) float64
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    GIVEN_JOINT: tl.constexpr,
):
    modality = tl.arange(0, PADDED)
    real = modality < MODALITIES
    excess = coefficient - 1.0
    mean = tl.sum(excess, 0) / MODALITIES
    if GIVEN_JOINT:
        tl.store(scales + modality, excess - mean, mask=real)
    else:
        tl.store(scales + modality, coefficient, mask=real)
    tl.store(scales + MODALITIES, mean + 1.0)
    tl.store(scales + MODALITIES + 1 + modality, mean - excess, mask=real)
    tl.store(scales + 2 * MODALITIES + 1, mean + 1.0)


@triton.jit
def _make_step(
    cost,  # (PADDED,) float64
    hit,  # (PADDED,) int64
    joint_hit,
    used,
    weights,  # None for other scales than the subsets'
    values,  # (5, MODALITIES) float64
    counts,  # (MODALITIES + 4,) int64
    scales,
    alpha,
    max_gap,
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    UPDATE: tl.constexpr,
    SCALES: tl.constexpr,  # "subsets", "additive", or "additive beside joint logits"
):
    modality = tl.arange(0, PADDED)
    real = modality < MODALITIES
    scores = cost / used.to(tl.float64)
    running = tl.load(values + modality, mask=real, other=0.0)
    step = tl.load(counts + MODALITIES + 2) + 1
    skipped = tl.load(counts + MODALITIES + 3)
    tl.debug_barrier()  # other threads of the program may still be reading what is written below

    ratio = _ratio(scores, real, MODALITIES)
    reference_ratio = _ratio(running, real, MODALITIES)
    gap = reference_ratio - ratio
    gap = tl.where(gap > max_gap, max_gap, gap)
    coefficient = tl.exp(alpha * gap)
    finite = (tl.abs(scores) < float("inf")) & (coefficient <= 3.4028234663852886e38)  # applied in float32
    usable = tl.min(tl.where(real, finite.to(tl.int32), 1), 0)
    coefficient = tl.where(real & (usable == 1), coefficient, 1.0)

    if SCALES == "subsets":
        _write_subset_scales(coefficient, weights, scales, MODALITIES, PADDED)
    else:
        _write_additive_scales(coefficient, scales, MODALITIES, PADDED, SCALES == "additive beside joint logits")

    if UPDATE:
        t = step.to(tl.float64)
        new = tl.where(usable == 1, running * ((t - 1.0) / t) + scores / t, running)
        tl.store(values + modality, new, mask=real)
        tl.store(values + MODALITIES + modality, scores, mask=real)
        tl.store(values + 2 * MODALITIES + modality, ratio, mask=real)
        tl.store(values + 3 * MODALITIES + modality, reference_ratio, mask=real)
        tl.store(values + 4 * MODALITIES + modality, coefficient, mask=real)
        tl.store(counts + modality, hit, mask=real)
        tl.store(counts + MODALITIES, joint_hit)
        tl.store(counts + MODALITIES + 1, used)
        tl.store(counts + MODALITIES + 2, step - 1 + usable)
        tl.store(counts + MODALITIES + 3, skipped + 1 - usable)


@triton.jit
def _write_loss(
    weighted,  # float64 sums over the samples, as in `_score`
    plain,
    spread,
    weight_sum,
    class_weight,
    classes,
    label_smoothing,
    loss,  # ()
    sums,  # (2,) float64
    BLOCK: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    label_smoothing = _float64(label_smoothing)
    result = (1.0 - label_smoothing) * weighted
    if SMOOTHING:
        if class_weight is not None:
            total = tl.zeros([BLOCK], tl.float64)
            for first in range(0, classes, BLOCK):
                index = first + tl.arange(0, BLOCK)
                total += tl.load(class_weight + index, mask=index < classes, other=0.0).to(tl.float64)
            all_weights = tl.sum(total, 0)
        else:
            all_weights = tl.cast(classes, tl.float64)
        result += label_smoothing / tl.cast(classes, tl.float64) * (all_weights * plain + spread)
        tl.store(sums + 1, all_weights)
    else:
        tl.store(sums + 1, 0.0)
    tl.store(sums, weight_sum)
    tl.store(loss, (result / weight_sum).to(loss.dtype.element_ty))


@triton.jit(do_not_specialize=["programs", "alpha", "max_gap", "label_smoothing"])
def _finish(
    costs,
    hits,
    programs,
    weights,
    values,
    counts,
    scales,
    alpha,
    max_gap,
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    UPDATE: tl.constexpr,
    SCALES: tl.constexpr = "subsets",
    LOSS: tl.constexpr = False,
    SMOOTHING: tl.constexpr = False,
    losses=None,  # these with LOSS only
    class_weight=None,
    classes=None,
    label_smoothing=None,
    loss=None,
    sums=None,
):
    modality = tl.arange(0, PADDED)
    cost = tl.zeros([BLOCK, PADDED], tl.float64)
    hit = tl.zeros([BLOCK, PADDED], tl.int64)
    joint_hit = tl.zeros([BLOCK], tl.int64)
    used = tl.zeros([BLOCK], tl.int64)
    part = tl.arange(0, 4)
    summed = tl.zeros([BLOCK, 4], tl.float64)
    for first in range(0, programs, BLOCK):
        program = first + tl.arange(0, BLOCK)
        exists = program < programs
        cost += tl.load(costs + program[:, None] * PADDED + modality[None, :], mask=exists[:, None], other=0.0)
        row = hits + program * 2 * PADDED
        hit += tl.load(row[:, None] + modality[None, :], mask=exists[:, None], other=0)
        joint_hit += tl.load(row + PADDED, mask=exists, other=0)
        used += tl.load(row + PADDED + 1, mask=exists, other=0)
        if LOSS:
            summed += tl.load(losses + program[:, None] * 4 + part[None, :], mask=exists[:, None], other=0.0)
    if LOSS:
        total = tl.sum(summed, 0)
        _write_loss(
            tl.sum(tl.where(part == 0, total, 0.0), 0),
            tl.sum(tl.where(part == 1, total, 0.0), 0),
            tl.sum(tl.where(part == 2, total, 0.0), 0),
            tl.sum(tl.where(part == 3, total, 0.0), 0),
            class_weight,
            classes,
            label_smoothing,
            loss,
            sums,
            BLOCK,
            SMOOTHING,
        )
    _make_step(
        tl.sum(cost, 0),
        tl.sum(hit, 0),
        tl.sum(joint_hit, 0),
        tl.sum(used, 0),
        weights,
        values,
        counts,
        scales,
        _float64(alpha),
        _float64(max_gap),
        MODALITIES,
        PADDED,
        UPDATE,
        SCALES,
    )


@triton.jit(do_not_specialize=["ignore_index", "cap", "alpha", "max_gap", "shares", "label_smoothing"])
def _finish_shares(
    found,
    beaten_by,
    labels,
    batch,
    classes,
    shares,
    ignore_index,
    cap,
    weights,
    values,
    counts,
    scales,
    alpha,
    max_gap,
    MODALITIES: tl.constexpr,
    PADDED: tl.constexpr,
    SAMPLES: tl.constexpr,
    DTYPE: tl.constexpr,
    UPDATE: tl.constexpr,
    SCALES: tl.constexpr = "subsets",
    LOSS: tl.constexpr = False,
    SMOOTHING: tl.constexpr = False,
    joint_found=None,  # these with LOSS only
    class_weight=None,
    normalizer=None,
    label_smoothing=None,
    loss=None,
    sums=None,
):
    modality = tl.arange(0, PADDED)[:, None]
    size = shares * PADDED * batch
    cap = _float64(cap).to(DTYPE)
    cost = tl.zeros([PADDED, SAMPLES], tl.float64)
    hit = tl.zeros([PADDED, SAMPLES], tl.int64)
    joint_hit = tl.zeros([SAMPLES], tl.int64)
    used = tl.zeros([SAMPLES], tl.int64)
    weighted = tl.zeros([SAMPLES], tl.float64)
    plain = tl.zeros([SAMPLES], tl.float64)
    spreads = tl.zeros([SAMPLES], tl.float64)
    weight_sum = tl.zeros([SAMPLES], tl.float64)
    for first in range(0, batch, SAMPLES):
        sample = first + tl.arange(0, SAMPLES)
        exists = sample < batch
        label = tl.load(labels + sample, mask=exists, other=0)
        counted = exists & (label != ignore_index)
        known = counted & (label >= 0) & (label < classes)
        inside = known[None, :] & (modality < MODALITIES)
        largest = tl.full([PADDED, SAMPLES], float("-inf"), DTYPE)
        total = tl.zeros([PADDED, SAMPLES], DTYPE)
        beaten = tl.zeros([PADDED, SAMPLES], tl.int32)
        joint_beaten = tl.zeros([SAMPLES], tl.int32)
        for share in range(shares):
            at = found + (share * PADDED + modality) * batch + sample[None, :]
            other = tl.load(at, mask=inside, other=float("-inf"))
            new = tl.maximum(largest, other)
            shift = _shift(new)
            other_total = tl.load(at + size, mask=inside, other=0.0)
            total = total * tl.exp(largest - shift) + other_total * tl.exp(other - shift)
            largest = new
            flags = beaten_by + share * 2 * PADDED * batch
            beaten = beaten | tl.load(flags + modality * batch + sample[None, :], mask=inside, other=0)
            joint_beaten = joint_beaten | tl.load(flags + PADDED * batch + sample, mask=known, other=0)
        target = tl.load(found + 2 * size + modality * batch + sample[None, :], mask=inside, other=0.0)
        own = tl.where(known[None, :], _cost(largest, total, target, cap), float("nan")).to(tl.float64)
        cost += tl.where(counted[None, :], own, 0.0)
        hit += (known[None, :] & (beaten == 0)).to(tl.int64)
        joint_hit += (known & (joint_beaten == 0)).to(tl.int64)
        used += counted.to(tl.int64)
        if LOSS:
            joint_largest = tl.full([SAMPLES], float("-inf"), DTYPE)
            joint_total = tl.zeros([SAMPLES], DTYPE)
            spread = tl.zeros([SAMPLES], tl.float64)
            joint_size = shares * batch
            for share in range(shares):
                at = joint_found + share * batch + sample
                other = tl.load(at, mask=known, other=float("-inf")).to(DTYPE)
                new = tl.maximum(joint_largest, other)
                shift = _shift(new)
                other_total = tl.load(at + joint_size, mask=known, other=0.0).to(DTYPE)
                joint_total = joint_total * tl.exp(joint_largest - shift) + other_total * tl.exp(other - shift)
                joint_largest = new
                spread += tl.load(at + 3 * joint_size, mask=known, other=0.0)
            joint_target = tl.load(joint_found + 2 * joint_size + sample, mask=known, other=0.0).to(DTYPE)
            own_cost, own_weight = _loss_of(
                *(joint_largest, joint_total, joint_target, sample, label, exists, counted, known),
                *(batch, class_weight, normalizer),
            )
            weighted += own_weight * own_cost
            plain += own_cost
            spreads += spread
            weight_sum += own_weight
    if LOSS:
        _write_loss(
            tl.sum(weighted, 0),
            tl.sum(plain, 0),
            tl.sum(spreads, 0),
            tl.sum(weight_sum, 0),
            class_weight,
            classes,
            label_smoothing,
            loss,
            sums,
            SAMPLES,
            SMOOTHING,
        )
    _make_step(
        tl.sum(cost, 1),
        tl.sum(hit, 1),
        tl.sum(joint_hit, 0),
        tl.sum(used, 0),
        weights,
        values,
        counts,
        scales,
        _float64(alpha),
        _float64(max_gap),
        MODALITIES,
        PADDED,
        UPDATE,
        SCALES,
    )


@dataclass(frozen=True)
class Loss:
    """Where the cross-entropy of the joint logits goes, and its settings."""

    class_weight: Tensor | None  # (C,)
    label_smoothing: float
    loss: Tensor  # ()
    normalizer: Tensor  # (2, B)
    sums: Tensor  # (2,) float64


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
    padded = triton.next_power_of_2(modalities)
    tile = _TILE[modalities]
    block = min(tile, triton.next_power_of_2(max(classes, 1)))
    shares = min(classes // (4 * block), ENOUGH_PROGRAMS // max(batch, 1))
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
        if shares > 1:
            found = logits.new_empty((3, shares, padded, batch), dtype=wide)
            beaten_by = logits.new_empty((shares, 2 * padded, batch), dtype=torch.int32)
            joint_found = None if loss is None else logits.new_empty((4, shares, batch), dtype=torch.float64)
            share = triton.cdiv(classes, shares)
            _score_shares[(batch, shares)](
                *(logits, labels, weights, found, beaten_by, batch, classes, share),
                *(logits.stride(0), logits.stride(1), ignore_index, class_weight, joint_found),
                ROWS=rows,
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
        samples = min(tile // block, most, triton.next_power_of_2(max(batch, 1)))
        programs = max(1, min(triton.cdiv(batch, samples), _MAX_PROGRAMS))
        costs = logits.new_empty((programs, padded), dtype=torch.float64)
        hits = logits.new_empty((programs, 2 * padded), dtype=torch.int64)
        losses = None if loss is None else logits.new_empty((programs, 4), dtype=torch.float64)
        _score[(programs,)](
            *(logits, labels, weights, costs, hits, batch, classes),
            *(logits.stride(0), logits.stride(1), ignore_index, cap, class_weight, normalizer, losses),
            ROWS=rows,
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


@triton.jit
def _scale_rows(
    grad,  # (size,)
    scales,  # (rows,) float64
    out,  # (rows, size)
    rows,
    size,
    BLOCK: tl.constexpr,
):
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
    shares = max(1, min(rows, ENOUGH_PROGRAMS // blocks))  # a short gradient alone leaves the GPU idle
    with device_guard(grad):
        _scale_rows[(blocks, shares)](grad, subset_scales, out, rows, size, BLOCK=_BLOCK, enable_fp_fusion=True)
    return out
