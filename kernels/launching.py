"""What every launcher of a Triton kernel needs."""

import struct
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "ENOUGH_PROGRAMS",
    "accumulation_dtype",
    "aligned",
    "are_aligned",
    "bits",
    "device_guard",
    "even_programs",
    "float64",
    "parts_that_fill",
    "resident_programs",
    "unit_class_stride",
    "why_no_launch",
]

ENOUGH_PROGRAMS = 512  # fills any GPU of today a few times
# That score: so many have registers for float32 numbers of few modalities; float64 and many of them take more.
PROGRAMS_OF_MULTIPROCESSOR = 4
# That score shares of the classes with a loss beside.
PROGRAMS_WITH_LOSS = 3


@cache
def resident_programs(device: torch.device, of_multiprocessor: int = PROGRAMS_OF_MULTIPROCESSOR) -> int:
    """Programs that score that a device runs at once. The interpreter runs them one by one, however few they are."""
    if device.type != "cuda":
        return 2 * of_multiprocessor
    return int(torch.cuda.get_device_properties(device).multi_processor_count) * of_multiprocessor


def even_programs(items: int, resident: int) -> int:
    """Programs, at least 1, that run at once and go through the items, all equally often but for the last items."""
    return max(1, triton.cdiv(items, max(1, triton.cdiv(items, resident))))


def parts_that_fill(programs: int, most: int, resident: int) -> int:
    """In how many parts, at most `most`, the work of each program is shared out, so that the last ones to run leave
    little of the device idle. The time is that of the rounds, each of which takes 1 / parts.
    """
    choices = [1, *(min(most, rounds * resident // max(programs, 1)) for rounds in (1, 2, 3))]
    possible = (parts for parts in choices if parts > 0)
    return min(possible, key=lambda parts: triton.cdiv(programs * parts, resident) / parts)


def device_guard(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the current one, on which triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def bits(number: float) -> int:
    """A float64 for a kernel, which takes plain floats as float32."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


@triton.jit
def _store_one(number):
    for place in range(tl.program_id(0), 1):  # the interpreter of triton 3.6 has no loops with numpy 2.4
        tl.store(number + place, 1)


def why_no_launch(device: str) -> str | None:
    """Compiles and launches a kernel that does next to nothing; returns the cause where that fails.

    Triton compiles at a kernel's first use, for which it needs a C compiler, a folder that it may write to, and a
    driver that it knows.
    """
    try:
        _store_one[(1,)](torch.zeros(1, dtype=torch.int32, device=device))
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"triton cannot launch a kernel here: {cause}"
    return None


def are_aligned(*numbers: int) -> bool:
    """Whether strides or sizes allow wide loads and stores: what a kernel is told as ALIGNED.

    Triton would find that out by itself, of every integer that it is given, and compile anew where an odd last batch
    changes it. So what varies with the batch is not specialised.
    """
    return all(number % 16 == 0 for number in numbers)


@triton.jit
def aligned(number, ALIGNED: tl.constexpr):
    """The number, of which the compiler is told that it is a multiple of 16 where ALIGNED says so."""
    if ALIGNED:
        number = number // 16 * 16
    return number


@triton.jit
def float64(bits):
    """What `bits` made of a float64."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


def unit_class_stride(tensor: Tensor) -> Tensor:
    """The tensor itself where the last dimension is compact in memory, otherwise a compact copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def accumulation_dtype(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """In which a dtype is computed, for torch and for triton: float64 for float64, otherwise float32."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)
