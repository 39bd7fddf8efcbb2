"""The second launch of a step in Triton: one program puts together what the first left, and makes the step of it."""

import triton
import triton.language as tl
from agm.kernels.launching import float64
from agm.kernels.responses import _cost, _merge
from agm.kernels.scoring import _loss_of


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
    label_smoothing = float64(label_smoothing)
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
        float64(alpha),
        float64(max_gap),
        MODALITIES,
        PADDED,
        UPDATE,
        SCALES,
    )


@triton.jit(do_not_specialize=["ignore_index", "cap", "alpha", "max_gap", "shares", "label_smoothing", "batch"])
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
    cap = float64(cap).to(DTYPE)
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
            largest, total = _merge(largest, total, other, tl.load(at + size, mask=inside, other=0.0))
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
                other_total = tl.load(at + joint_size, mask=known, other=0.0).to(DTYPE)
                joint_largest, joint_total = _merge(joint_largest, joint_total, other, other_total)
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
        float64(alpha),
        float64(max_gap),
        MODALITIES,
        PADDED,
        UPDATE,
        SCALES,
    )
