"""The arithmetic of mono-modal responses in Triton: what can be, who beats the label, and the softmax on its way."""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


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
def _merge(largest, total, other, other_total):
    """The largest of both groups of numbers, and the sum of exponentials relative to it."""
    new = tl.maximum(largest, other)
    shift = _shift(new)
    return new, total * tl.exp(largest - shift) + other_total * tl.exp(other - shift)


@triton.jit
def _unscale(largest, total, target, SCALE: tl.constexpr):
    # Responses that cannot be stored make a step a skipped one, as what is no number does.
    largest = largest * SCALE
    return largest, tl.where(largest == float("inf"), float("nan"), total), target * SCALE


@triton.jit
def _beaten_by(
    logit,  # (samples, classes) or (PADDED, samples, classes)
    index,  # (1, classes) or (1, 1, classes)
    inside,
    target,  # as `logit`, but for the classes, as the result
    label,  # (samples,) or (1, samples)
    begin,  # the first class
    EXACT: tl.constexpr,
):
    """Whether some class keeps argmax from being the label, as int32, and the largest logit of all classes.

    A class beats the label if it is larger, or as large and before it. So of numbers the largest of all and the largest
    before the label tell. With EXACT each class is compared, and what is no number as argmax does.
    """
    numbers = tl.where(inside, logit, float("-inf"))
    axis: tl.constexpr = len(logit.shape) - 1
    largest = tl.max(numbers, axis)
    if EXACT:
        worse = _beats(logit, index, tl.expand_dims(target, axis), tl.expand_dims(label, axis)) & inside
        return tl.max(worse.to(tl.int32), axis), largest
    before = tl.max(tl.where(index < tl.expand_dims(label, axis), numbers, float("-inf")), axis)
    return ((largest > target) | ((before >= target) & (label > begin))).to(tl.int32), largest


@triton.jit
def _add_tile(
    response,  # (PADDED, SAMPLES, CLASSES), divided by SCALE: no sum of logits overflows on the way
    index,  # (CLASSES,)
    inside,  # (SAMPLES, CLASSES)
    target,  # (PADDED, SAMPLES)
    label,  # (SAMPLES,)
    begin,  # the first class of the tile
    largest,  # (PADDED, SAMPLES), as the two below
    total,
    beaten,
    SCALE: tl.constexpr,
    EXACT: tl.constexpr,
):
    every = inside[None, :, :]
    worse, own = _beaten_by(response, index[None, None, :], every, target, label[None, :], begin, EXACT)
    new = tl.maximum(largest, own)
    shift = _shift(new)
    response = tl.where(every, response, float("-inf"))
    exponent: tl.constexpr = SCALE * _LOG2E  # one product instead of two
    total *= tl.exp2((largest - shift) * exponent)
    total += tl.sum(tl.exp2((response - shift[:, :, None]) * exponent), 2)
    return new, total, beaten | worse


@triton.jit
def _is_odd(total):
    """Whether a sum of exponentials is NaN: an infinity or no number is among the responses of some sample."""
    return tl.max(tl.max((total != total).to(tl.int32), 1), 0) > 0


@triton.jit
def _cost(largest, total, target, cap):
    cost = tl.log(total) + (largest - target)
    return tl.where(cost > cap, cap, cost)  # NaN stays NaN
