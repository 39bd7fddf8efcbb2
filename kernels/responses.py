"""The arithmetic of mono-modal responses in Triton: what can be, who beats the label, and the softmax on its way."""

import triton
import triton.language as tl


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
def _cost(largest, total, target, cap):
    cost = tl.log(total) + (largest - target)
    return tl.where(cost > cap, cap, cost)  # NaN stays NaN
