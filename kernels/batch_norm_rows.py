"""Batch norm of train rows and eval rows in Triton: NVIDIA and AMD GPUs, and CPU tensors under `TRITON_INTERPRET=1`.

`agm.ops.reference` is the specification. Two launches each way: the first leaves what each chunk of the values of a
channel adds, the second puts these together again in each of its programs, and writes. No byte is moved more than by
torch.
"""

import math

import torch
import triton
import triton.language as tl
from agm.kernels.launching import ENOUGH_PROGRAMS, accumulation_dtype, bits, device_guard, float64
from torch import Tensor

__all__ = ["batch_norm_rows", "batch_norm_rows_backward"]

_TILE = 1024  # numbers that a program holds at a time
_CHANNELS = 32  # at most, of that tile, where channels are neighbours in memory
_MAX_CHUNKS = 64  # of the values of a channel: a program of the second launch holds what all of them left

# What varies with the size of the last batch is not compiled in.
_BY_BATCH = ["values", "train_values", "share", "train_chunks", "chunks"]


@triton.jit
def _chunk(chunk, values, train_values, share, train_chunks):
    """The values of a chunk, and whether they are of train rows: no chunk holds both."""
    train = chunk < train_chunks
    begin = tl.where(train, chunk * share, train_values + (chunk - train_chunks) * share)
    return begin, tl.minimum(begin + share, tl.where(train, train_values, values)), train


@triton.jit
def _offsets(value, channel, channels, positions, CHANNELS_LAST: tl.constexpr):
    """Where values (VALUES, 1) of channels (1, CHANNELS) are in memory."""
    if CHANNELS_LAST:
        return value.to(tl.int64) * channels + channel
    row = value // positions
    return (row.to(tl.int64) * channels + channel) * positions + (value - row * positions)


@triton.jit
def _per_channel(source, channel, inside, otherwise, DTYPE: tl.constexpr):
    """(1, CHANNELS) numbers of the channels, `otherwise` where there is no tensor."""
    if source is None:
        return tl.full(channel.shape, otherwise, DTYPE)
    return tl.load(source + channel, mask=inside, other=0.0).to(DTYPE)


@triton.jit
def _inverse_deviation(variance, eps):
    return 1.0 / tl.sqrt(variance.to(tl.float64) + eps)


@triton.jit(do_not_specialize=_BY_BATCH)
def _collect(
    source,
    partial,  # (2, chunks, channels): means, sums of squares about them
    channels,
    positions,
    values,
    train_values,
    share,
    train_chunks,
    chunks,  # those of the train rows, or all
    CHANNELS_LAST: tl.constexpr,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = channel < channels
    begin, end, _ = _chunk(tl.program_id(1), values, train_values, share, train_chunks)
    mean = tl.zeros([1, CHANNELS], DTYPE)
    squares = tl.zeros([1, CHANNELS], DTYPE)
    for first in range(begin, end, VALUES):
        value = first + tl.arange(0, VALUES)[:, None]
        exists = (value < end) & inside
        x = tl.load(source + _offsets(value, channel, channels, positions, CHANNELS_LAST), mask=exists, other=0.0)
        x = x.to(DTYPE)
        # Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979
        count = tl.minimum(end - first, VALUES).to(DTYPE)
        before = tl.cast(first - begin, DTYPE)
        own_mean = tl.sum(x, 0, keep_dims=True) / count
        difference = tl.where(exists, x - own_mean, 0.0)
        apart = own_mean - mean
        portion = count / (before + count)
        mean += apart * portion
        squares += tl.sum(difference * difference, 0, keep_dims=True) + apart * apart * (before * portion)
    target = partial + tl.program_id(1) * channels + channel
    tl.store(target, mean, mask=inside)
    tl.store(target + chunks * channels, squares, mask=inside)


@triton.jit
def _merged(partial, chunk, chunks, there, channel, channels, count, total):
    """(1, CHANNELS) mean and sum of squares about it, of the chunks that are `there`, each of `count` of all values."""
    means = tl.load(partial + chunk * channels + channel, mask=there, other=0.0)
    squares = tl.load(partial + (chunks + chunk) * channels + channel, mask=there, other=0.0)
    mean = tl.sum(means * (count / total), 0, keep_dims=True)
    apart = tl.where(there, means - mean, 0.0)
    mean += tl.sum(apart * (count / total), 0, keep_dims=True)  # what the first sum was rounded by
    apart = tl.where(there, means - mean, 0.0)
    return mean, tl.sum(squares + apart * apart * count, 0, keep_dims=True).to(tl.float64)


@triton.jit(do_not_specialize=_BY_BATCH)
def _normalise(
    source,
    out,
    partial,  # (2, train_chunks or chunks, channels), as `_collect` leaves it
    running_mean,  # (channels,) or None
    running_var,  # (channels,) or None
    weight,  # (channels,) or None
    bias,  # (channels,) or None
    batches,  # () int64 or None
    updated_mean,
    updated_var,
    saved_mean,  # (channels,); without running statistics (2, channels)
    saved_invstd,  # likewise
    channels,
    positions,
    values,
    train_values,
    share,
    train_chunks,
    chunks,
    momentum,
    eps,
    CHANNELS_LAST: tl.constexpr,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    momentum, eps = float64(momentum), float64(eps)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = channel < channels

    # The statistics of all train rows, which every program needs, and the first one of a channel stores.
    chunk = tl.arange(0, CHUNKS)[:, None]
    there = (chunk < train_chunks) & inside
    count = tl.maximum(tl.minimum(train_values - chunk * share, share), 0).to(DTYPE)
    total = tl.cast(train_values, DTYPE)
    of_partial = chunks if running_mean is None else train_chunks
    mean, squares = _merged(partial, chunk, of_partial, there, channel, channels, count, total)
    wide_total = tl.cast(train_values, tl.float64)
    invstd = _inverse_deviation(squares / wide_total, eps)
    if running_mean is None:
        # The others have statistics of their own.
        rest_values = tl.maximum(values - train_values, 1)  # where there are none, nothing is divided by 0
        rest = (chunk >= train_chunks) & (chunk < chunks) & inside
        rest_count = tl.maximum(tl.minimum(values - train_values - (chunk - train_chunks) * share, share), 0)
        rest_count = tl.where(rest, rest_count, 0).to(DTYPE)
        rest_mean, rest_squares = _merged(
            partial, chunk, chunks, rest, channel, channels, rest_count, tl.cast(rest_values, DTYPE)
        )
        rest_invstd = _inverse_deviation(rest_squares / tl.cast(rest_values, tl.float64), eps)
        if tl.program_id(1) == 0:
            tl.store(saved_mean + channels + channel, rest_mean, mask=inside)
            tl.store(saved_invstd + channels + channel, rest_invstd.to(DTYPE), mask=inside)
    else:
        if batches is not None:
            momentum = 1.0 / (tl.load(batches).to(tl.float64) + 1.0)
        old_mean = _per_channel(running_mean, channel, inside, 0.0, tl.float64)
        old_var = _per_channel(running_var, channel, inside, 0.0, tl.float64)
        new_mean = momentum * mean.to(tl.float64) + (1.0 - momentum) * old_mean
        new_var = momentum * (squares / (wide_total - 1.0)) + (1.0 - momentum) * old_var
        new_mean = new_mean.to(DTYPE).to(updated_mean.dtype.element_ty)  # interpreted, no float64 is rounded to 16 bits
        new_var = new_var.to(DTYPE).to(updated_var.dtype.element_ty)
        rest_mean = new_mean.to(DTYPE)
        rest_invstd = _inverse_deviation(new_var, eps)
        if tl.program_id(1) == 0:
            tl.store(updated_mean + channel, new_mean, mask=inside)
            tl.store(updated_var + channel, new_var, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(saved_mean + channel, mean, mask=inside)
        tl.store(saved_invstd + channel, invstd.to(DTYPE), mask=inside)

    begin, end, train = _chunk(tl.program_id(1), values, train_values, share, train_chunks)
    centre = tl.where(train, mean, rest_mean)
    scale = tl.where(train, invstd, rest_invstd).to(DTYPE)
    scale *= _per_channel(weight, channel, inside, 1.0, DTYPE)
    offset = _per_channel(bias, channel, inside, 0.0, DTYPE)
    for first in range(begin, end, VALUES):
        value = first + tl.arange(0, VALUES)[:, None]
        exists = (value < end) & inside
        at = _offsets(value, channel, channels, positions, CHANNELS_LAST)
        x = tl.load(source + at, mask=exists, other=0.0).to(DTYPE)
        tl.store(out + at, ((x - centre) * scale + offset).to(out.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=_BY_BATCH)
def _collect_gradients(
    grad,
    source,
    partial,  # (2, chunks, channels): sums of g, and of g (x - mean)
    saved_mean,
    rest_mean,  # what the others were normalised by
    channels,
    positions,
    values,
    train_values,
    share,
    train_chunks,
    chunks,
    CHANNELS_LAST: tl.constexpr,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = channel < channels
    begin, end, train = _chunk(tl.program_id(1), values, train_values, share, train_chunks)
    mean = _per_channel(saved_mean, channel, inside, 0.0, DTYPE)
    centre = tl.where(train, mean, _per_channel(rest_mean, channel, inside, 0.0, DTYPE))
    total = tl.zeros([1, CHANNELS], DTYPE)
    product = tl.zeros([1, CHANNELS], DTYPE)
    for first in range(begin, end, VALUES):
        value = first + tl.arange(0, VALUES)[:, None]
        exists = (value < end) & inside
        at = _offsets(value, channel, channels, positions, CHANNELS_LAST)
        g = tl.load(grad + at, mask=exists, other=0.0).to(DTYPE)
        x = tl.load(source + at, mask=exists, other=0.0).to(DTYPE)
        total += tl.sum(g, 0, keep_dims=True)
        product += tl.sum(tl.where(exists, g * (x - centre), 0.0), 0, keep_dims=True)
    target = partial + tl.program_id(1) * channels + channel
    tl.store(target, total, mask=inside)
    tl.store(target + chunks * channels, product, mask=inside)


@triton.jit(do_not_specialize=_BY_BATCH)
def _pull_back(
    grad,
    source,
    out,
    partial,  # (2, chunks, channels), as `_collect_gradients` leaves it
    weight,  # (channels,) or None
    saved_mean,  # (channels,); without running statistics (2, channels)
    saved_invstd,  # likewise
    updated_mean,  # (channels,) or None
    updated_var,  # (channels,) or None
    grad_weight,
    grad_bias,
    channels,
    positions,
    values,
    train_values,
    share,
    train_chunks,
    chunks,
    eps,
    CHANNELS_LAST: tl.constexpr,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = channel < channels
    chunk = tl.arange(0, CHUNKS)[:, None]
    there = (chunk < chunks) & inside
    totals = tl.load(partial + chunk * channels + channel, mask=there, other=0.0)
    products = tl.load(partial + (chunks + chunk) * channels + channel, mask=there, other=0.0)
    of_train = chunk < train_chunks
    total = tl.sum(tl.where(of_train, totals, 0.0), 0, keep_dims=True)
    product = tl.sum(tl.where(of_train, products, 0.0), 0, keep_dims=True)
    rest_product = tl.sum(tl.where(of_train, 0.0, products), 0, keep_dims=True)
    invstd = _per_channel(saved_invstd, channel, inside, 0.0, DTYPE)
    if updated_mean is None:
        rest_mean = tl.load(saved_mean + channels + channel, mask=inside, other=0.0).to(DTYPE)
        rest_invstd = tl.load(saved_invstd + channels + channel, mask=inside, other=0.0).to(DTYPE)
    else:
        rest_mean = _per_channel(updated_mean, channel, inside, 0.0, DTYPE)
        variance = tl.load(updated_var + channel, mask=inside, other=1.0)
        rest_invstd = _inverse_deviation(variance, float64(eps)).to(DTYPE)
    if tl.program_id(1) == 0:
        of_weight = product * invstd + rest_product * rest_invstd
        tl.store(grad_weight + channel, of_weight.to(grad_weight.dtype.element_ty), mask=inside)
        tl.store(grad_bias + channel, tl.sum(totals, 0, keep_dims=True).to(grad_bias.dtype.element_ty), mask=inside)

    begin, end, train = _chunk(tl.program_id(1), values, train_values, share, train_chunks)
    count = tl.cast(train_values, DTYPE)
    mean = _per_channel(saved_mean, channel, inside, 0.0, DTYPE)
    centre = tl.where(train, mean, rest_mean)
    mean_g = tl.where(train, total / count, 0.0)  # through running statistics nothing flows
    slope = tl.where(train, product / count * invstd * invstd, 0.0)
    if updated_mean is None:
        rest_count = tl.cast(tl.maximum(values - train_values, 1), DTYPE)
        mean_g = tl.where(train, mean_g, tl.sum(tl.where(of_train, 0.0, totals), 0, keep_dims=True) / rest_count)
        slope = tl.where(train, slope, rest_product / rest_count * rest_invstd * rest_invstd)
    scale = tl.where(train, invstd, rest_invstd) * _per_channel(weight, channel, inside, 1.0, DTYPE)
    for first in range(begin, end, VALUES):
        value = first + tl.arange(0, VALUES)[:, None]
        exists = (value < end) & inside
        at = _offsets(value, channel, channels, positions, CHANNELS_LAST)
        g = tl.load(grad + at, mask=exists, other=0.0).to(DTYPE)
        x = tl.load(source + at, mask=exists, other=0.0).to(DTYPE)
        tl.store(out + at, ((g - mean_g - (x - centre) * slope) * scale).to(out.dtype.element_ty), mask=exists)


class _Plan:
    """The tensor compact in memory, and how its values are shared out: by its size alone."""

    def __init__(self, tensor: Tensor, train_rows: int) -> None:
        rows, self.channels = tensor.shape[:2]
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim(), torch.contiguous_format)
        if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=layout):
            layout = torch.contiguous_format
        self.layout = layout
        self.tensor = tensor.contiguous(memory_format=layout)
        self.positions = math.prod(tensor.shape[2:])
        self.values, self.train_values = rows * self.positions, train_rows * self.positions
        channels_last = layout != torch.contiguous_format or self.positions == 1
        columns = min(_CHANNELS, triton.next_power_of_2(self.channels)) if channels_last else 1
        length = _TILE // columns
        blocks = triton.cdiv(self.channels, columns)
        tiles = triton.cdiv(self.values, length)
        chunks = max(1, min(tiles, _MAX_CHUNKS - 1, ENOUGH_PROGRAMS // blocks))
        self.share = triton.cdiv(tiles, chunks) * length
        self.train_chunks = triton.cdiv(self.train_values, self.share)
        # Train rows and eval rows may each end with a chunk that is not full, so there may be one more.
        self.chunks = self.train_chunks + triton.cdiv(self.values - self.train_values, self.share)
        self.grid = (blocks, self.chunks)
        _, dtype = accumulation_dtype(tensor.dtype)
        self.options = {"CHANNELS_LAST": channels_last, "VALUES": length, "CHANNELS": columns, "DTYPE": dtype}
        self.options["enable_fp_fusion"] = True


def batch_norm_rows(
    input: Tensor,  # (N, C, ...)
    running_mean: Tensor | None,  # (C,)
    running_var: Tensor | None,  # (C,)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    train_rows: int,
    momentum: float,
    eps: float,
    batches: Tensor | None = None,  # () int64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, the updated statistics and those of the train rows, in two launches."""
    plan = _Plan(input, train_rows)
    wide, _ = accumulation_dtype(input.dtype)
    out = torch.empty_like(plan.tensor)
    if running_mean is None or running_var is None:
        updated = [input.new_empty(0, dtype=wide) for _ in range(2)]
        shape, chunks = (2, plan.channels), plan.chunks
    else:
        updated = [input.new_empty(plan.channels, dtype=part.dtype) for part in (running_mean, running_var)]
        shape, chunks = (plan.channels,), plan.train_chunks
    saved = [input.new_empty(shape, dtype=wide) for _ in range(2)]
    partial = input.new_empty((2, chunks, plan.channels), dtype=wide)
    parameters = [None if part is None else part.contiguous() for part in (running_mean, running_var, weight, bias)]
    sizes = (plan.channels, plan.positions, plan.values, plan.train_values, plan.share, plan.train_chunks, chunks)
    with device_guard(input):
        _collect[(plan.grid[0], chunks)](*(plan.tensor, partial, *sizes), **plan.options)
        _normalise[plan.grid](
            *(plan.tensor, out, partial, *parameters, batches, *updated, *saved),
            *(*sizes, bits(momentum), bits(eps)),
            CHUNKS=_MAX_CHUNKS,
            **plan.options,
        )
    return out, *updated, *saved


def batch_norm_rows_backward(
    grad: Tensor,  # (N, C, ...)
    input: Tensor,  # (N, C, ...)
    weight: Tensor | None,  # (C,)
    mean: Tensor,  # (C,), or (2, C)
    invstd: Tensor,  # (C,), or (2, C)
    updated_mean: Tensor,  # (C,), or (0,)
    updated_var: Tensor,  # (C,), or (0,)
    train_rows: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input, of the weight and of the bias, in two launches."""
    plan = _Plan(input, train_rows)
    grad = grad.contiguous(memory_format=plan.layout)
    wide, _ = accumulation_dtype(input.dtype)
    out = torch.empty_like(plan.tensor)
    own = updated_mean.dtype if weight is None else weight.dtype
    of_parameters = [input.new_empty(plan.channels, dtype=own) for _ in range(2)]
    partial = input.new_empty((2, plan.chunks, plan.channels), dtype=wide)
    sizes = (plan.channels, plan.positions, plan.values, plan.train_values, plan.share, plan.train_chunks, plan.chunks)
    saved = [part.contiguous() for part in (mean, invstd)]
    running = [part.contiguous() if part.numel() else None for part in (updated_mean, updated_var)]
    rest_mean = saved[0][1] if running[0] is None else running[0]
    with device_guard(input):
        _collect_gradients[plan.grid](*(grad, plan.tensor, partial, saved[0], rest_mean, *sizes), **plan.options)
        _pull_back[plan.grid](
            *(grad, plan.tensor, out, partial, None if weight is None else weight.contiguous()),
            *(*saved, *running, *of_parameters, *sizes, bits(eps)),
            CHUNKS=_MAX_CHUNKS,
            **plan.options,
        )
    return out, *of_parameters
