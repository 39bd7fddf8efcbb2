"""Subset expansion in Triton: NVIDIA and AMD GPUs, and CPU tensors under `TRITON_INTERPRET=1`.

`agm.ops.reference` is the specification. There is no version in CUDA C++: a copy and a sum wait for memory alone, which
these kernels touch once.
"""

import torch
import triton
import triton.language as tl
from agm.kernels.launching import ENOUGH_PROGRAMS, accumulation_dtype, device_guard
from torch import Tensor

__all__ = ["MAX_MODALITIES", "expand_subsets", "expand_subsets_backward"]

MAX_MODALITIES = 6

_TILE = 1024  # numbers that a program holds at a time: modalities * samples * columns
_SUM_TILE = 512  # the same for `_sum`, whose tile has several parts
_COLUMNS = 256  # at most, of that tile
_MAX_PROGRAMS = 256  # along the samples; as many sums of absent rows are added up by one program in the end
_PROGRAMS = 16  # whose sums `_sum_partial` takes at a time


@triton.jit
def _column_tile(
    tile,
    widths,  # columns of each modality
    MODALITIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The modality of a tile of columns, where its columns start in a row, the tile's first one of them, their count.

    The tiles go by modality, and none holds columns of two.
    """
    modality = tile * 0
    start = tile.to(tl.int64) * 0
    first = tile * COLUMNS
    width = tile * 0 + widths[0]
    tiles = tile * 0
    columns = tile.to(tl.int64) * 0
    for m in tl.static_range(MODALITIES):
        here = tile >= tiles
        modality = tl.where(here, m, modality)
        start = tl.where(here, columns, start)
        first = tl.where(here, (tile - tiles) * COLUMNS, first)
        width = tl.where(here, widths[m], width)
        tiles += tl.cdiv(widths[m], COLUMNS)
        columns += widths[m]
    return modality, start, first, width


@triton.jit(do_not_specialize=["batch"])
def _concatenate(
    present,  # (batch, width) each
    absent,  # (1, width) each
    out,  # (2**MODALITIES - 2, batch, row_width)
    strides,  # from sample to sample of `present`
    widths,
    batch,
    row_width,
    MODALITIES: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # One program reads its tiles of one modality once and writes them into its share of the subsets.
    modality, start, first, width = _column_tile(tl.program_id(0), widths, MODALITIES, COLUMNS)
    column = first + tl.arange(0, COLUMNS)[None, :]
    none = tl.zeros([1, COLUMNS], out.dtype.element_ty)
    for m in tl.static_range(MODALITIES):
        own_width = tl.where(modality == m, width, 0)
        none = tl.load(absent[m] + column, mask=column < own_width, other=none)
    for sample in range(tl.program_id(1) * SAMPLES, batch, tl.num_programs(1) * SAMPLES):
        row = (sample + tl.arange(0, SAMPLES)[:, None]).to(tl.int64)
        inside = (row < batch) & (column < width)
        one = tl.zeros([SAMPLES, COLUMNS], out.dtype.element_ty)
        for m in tl.static_range(MODALITIES):
            own_width = tl.where(modality == m, width, 0)
            own = (row < batch) & (column < own_width)
            one = tl.load(present[m] + row * strides[m] + column, mask=own, other=one)
        for subset in range(1 + tl.program_id(2), 2**MODALITIES - 1, tl.num_programs(2)):
            target = out + (tl.cast(subset - 1, tl.int64) * batch + row) * row_width + start + column
            tl.store(target, tl.where((subset >> modality) & 1 != 0, one, none), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def _sum(
    present,
    absent,
    out,  # (2**MODALITIES - 2, batch, width)
    strides,
    batch,
    width,
    MODALITIES: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    # The parts of a tile come from memory for the first subset and from the cache for the others.
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    for sample in range(tl.program_id(1) * SAMPLES, batch, tl.num_programs(1) * SAMPLES):
        row = (sample + tl.arange(0, SAMPLES)[:, None]).to(tl.int64)
        inside = (row < batch) & (column < width)
        for subset in range(1 + tl.program_id(2), 2**MODALITIES - 1, tl.num_programs(2)):
            total = tl.zeros([SAMPLES, COLUMNS], DTYPE)
            for m in tl.static_range(MODALITIES):
                is_present = (subset >> m) & 1 != 0
                one_width, none_width = tl.where(is_present, width, 0), tl.where(is_present, 0, width)
                mask = (row < batch) & (column < one_width)
                one = tl.load(present[m] + row * strides[m] + column, mask=mask, other=0.0)
                none = tl.load(absent[m] + column, mask=column < none_width, other=0.0)
                total += tl.where(is_present, one, none).to(DTYPE)
            target = out + (tl.cast(subset - 1, tl.int64) * batch + row) * width + column
            tl.store(target, total.to(out.dtype.element_ty), mask=inside)


def expand_subsets(present: list[Tensor], absent: list[Tensor], concatenate: bool) -> Tensor:
    """The rows of every proper subset, ((2**M - 2) * B, D), in one launch."""
    modalities, batch = len(present), present[0].shape[0]
    widths = _checked([rows.shape[1] for rows in present])
    row_width = sum(widths) if concatenate else widths[0]
    out = present[0].new_empty(((2**modalities - 2) * batch, row_width))
    if out.numel() == 0:
        return out
    present, absent = _unit_column_stride(present), _unit_column_stride(absent)
    columns, samples = _tile(widths, batch, _TILE if concatenate else _SUM_TILE)
    tiles = _tiles(widths if concatenate else widths[:1], columns)
    programs = min(triton.cdiv(batch, samples), _MAX_PROGRAMS)
    shares = max(1, min(2**modalities - 2, ENOUGH_PROGRAMS // (tiles * programs)))  # few rows leave the GPU idle
    strides = tuple(rows.stride(0) for rows in present)
    options = {"MODALITIES": modalities, "SAMPLES": samples, "COLUMNS": columns, "enable_fp_fusion": True}
    with device_guard(out):
        grid = (tiles, programs, shares)
        if concatenate:
            _concatenate[grid](tuple(present), tuple(absent), out, strides, tuple(widths), batch, row_width, **options)
        else:
            _, dtype = accumulation_dtype(out.dtype)
            _sum[grid](tuple(present), tuple(absent), out, strides, batch, row_width, DTYPE=dtype, **options)
    return out


@triton.jit(do_not_specialize=["batch"])
def _reduce(
    grad,  # (2**MODALITIES - 2, batch, columns), the last stride being 1
    grad_present,  # (batch, width) of each modality, one after another
    partial,  # (programs, total): what each program adds to the absent rows
    widths,
    batch,
    row_stride,
    total,  # columns of all modalities
    MODALITIES: tl.constexpr,
    SHARED: tl.constexpr,  # modalities that have the same columns, as a power of two: 1 where they are concatenated
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    own, start, first, width = _column_tile(tl.program_id(0), widths, MODALITIES, COLUMNS)
    modality = own + tl.arange(0, SHARED)[:, None, None]
    column = first + tl.arange(0, COLUMNS)[None, None, :]
    before = start + (modality - own).to(tl.int64) * width  # columns of the modalities before
    outside = tl.zeros([SHARED, SAMPLES, COLUMNS], DTYPE)
    for sample in range(tl.program_id(1) * SAMPLES, batch, tl.num_programs(1) * SAMPLES):
        row = (sample + tl.arange(0, SAMPLES)[None, :, None]).to(tl.int64)
        exists = (row < batch) & (column < width)
        inside = tl.zeros([SHARED, SAMPLES, COLUMNS], DTYPE)
        for subset in range(1, 2**MODALITIES - 1):
            at = grad + (tl.cast(subset - 1, tl.int64) * batch + row) * row_stride + start + column
            gradient = tl.load(at, mask=exists, other=0.0).to(DTYPE)
            is_present = (subset >> modality) & 1 != 0
            inside += tl.where(is_present, gradient, 0.0)
            outside += tl.where(is_present, 0.0, gradient)
        target = grad_present + before * batch + row * width + column
        tl.store(target, inside.to(grad_present.dtype.element_ty), mask=exists & (modality < MODALITIES))
    target = partial + tl.program_id(1).to(tl.int64) * total + before + column
    sums = tl.sum(outside, 1, keep_dims=True).to(partial.dtype.element_ty)
    tl.store(target, sums, mask=(column < width) & (modality < MODALITIES))


@triton.jit(do_not_specialize=["programs"])
def _sum_partial(
    partial,  # (programs, total)
    grad_absent,  # (total,)
    programs,
    total,
    PROGRAMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = (tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    sums = tl.zeros([PROGRAMS, COLUMNS], partial.dtype.element_ty)
    for first in range(0, programs, PROGRAMS):
        program = first + tl.arange(0, PROGRAMS)[:, None]
        at = partial + program.to(tl.int64) * total + column
        sums += tl.load(at, mask=(program < programs) & (column < total), other=0.0)
    result = tl.sum(sums, 0, keep_dims=True)
    tl.store(grad_absent + column, result.to(grad_absent.dtype.element_ty), mask=column < total)


def expand_subsets_backward(
    grad: Tensor,  # ((2**M - 2) * B, D)
    widths: list[int],  # D_m
    batch: int,
    concatenate: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of the features and of the absent rows, (sum B * D_m,) and (sum D_m,), in one or two launches."""
    modalities, total = len(_checked(widths)), sum(widths)
    grad_present, grad_absent = grad.new_empty(batch * total), grad.new_empty(total)
    if grad.numel() == 0:
        return grad_present, grad_absent.zero_()
    (grad,) = _unit_column_stride([grad])
    shared = 1 if concatenate else triton.next_power_of_2(modalities)
    columns, samples = _tile(widths, batch, _TILE // shared)
    tiles = _tiles(widths if concatenate else widths[:1], columns)
    programs = min(triton.cdiv(batch, samples), _MAX_PROGRAMS)
    wide, dtype = accumulation_dtype(grad.dtype)
    partial = grad_absent
    if programs > 1:
        partial = grad.new_empty((programs, total), dtype=wide)
    with device_guard(grad):
        _reduce[(tiles, programs)](
            *(grad, grad_present, partial, tuple(widths), batch, grad.stride(0), total),
            MODALITIES=modalities,
            SHARED=shared,
            SAMPLES=samples,
            COLUMNS=columns,
            DTYPE=dtype,
            enable_fp_fusion=True,
        )
        if programs > 1:
            block = min(_TILE // _PROGRAMS, triton.next_power_of_2(total))
            grid = (triton.cdiv(total, block),)
            _sum_partial[grid](
                *(partial, grad_absent, programs, total), PROGRAMS=_PROGRAMS, COLUMNS=block, enable_fp_fusion=True
            )
    return grad_present, grad_absent


def _checked(widths: list[int]) -> list[int]:
    if len(widths) > MAX_MODALITIES:
        raise ValueError(f"Expected at most {MAX_MODALITIES} modalities for the Triton kernel, but got {len(widths)}.")
    return widths


def _unit_column_stride(tensors: list[Tensor]) -> list[Tensor]:
    # A view, since triton would take a pointer to bool for one to single bits.
    bytes_ = [rows.view(torch.uint8) if rows.dtype == torch.bool else rows for rows in tensors]
    return [rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous() for rows in bytes_]


def _tile(widths: list[int], batch: int, size: int) -> tuple[int, int]:
    """Columns and samples of a tile of at most `size` numbers."""
    columns = min(_COLUMNS, size, triton.next_power_of_2(max(widths)))
    return columns, min(size // columns, triton.next_power_of_2(batch))


def _tiles(widths: list[int], columns: int) -> int:
    return sum(triton.cdiv(width, columns) for width in widths)
