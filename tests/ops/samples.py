"""The inputs on which every op is tested, and how exact its results must be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import deterministic

from agm.ops import _backends

from .building import Library

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# (M, B, C): empty, single, odd (no row of the output but the first is aligned), a multiple of a wide store, long
SHAPES = (
    (2, 0, 5),
    (2, 1, 1),
    (3, 2, 1),
    (2, 1, 2),
    (4, 3, 7),
    (2, 64, 10),
    (3, 5, 123),
    (3, 33, 151),
    (5, 4, 32),
    (6, 2, 33),
    (2, 2, 4096 + 32),
)

# How far a score may be from the one computed in float64 from the same logits, for logits of a few units. float64
# logits stay float64; all others are computed in float32, whose rounding of a response of up to 63 logits, of the
# exponentials and of their sum leaves a few units of 1e-6.
SCORE_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-5,
    torch.float16: 2e-5,
}
# What follows from the scores is float64 everywhere.
STEP_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Room:
    """A backend on a device."""

    backend: str
    device: str
    library: Library | None = None  # of the tests' own, which serves instead of agm's

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter serves, for which every program takes milliseconds."""
        return (self.backend, self.device) == ("triton", "cpu")

    @property
    def sparse(self) -> bool:
        """Whether a few cells of a large table have to do here."""
        return self.interpreted or (self.backend, self.device) == ("reference", "cpu")

    def many_classes(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape (M, B, C), for the interpreter with no more classes than it takes to share a sample out."""
        modalities, batch, classes = shape
        least = 2**14 // modalities + classes % 16  # rows are aligned as they were
        return (modalities, batch, min(classes, least)) if self.interpreted else shape

    def rounding(self, dtype: torch.dtype) -> float:
        """The relative error of storing a number: 0 where it is rounded to nearest, as torch does."""
        # Triton's interpreter cuts float32 off to bfloat16; compiled, it rounds.
        truncates = self.backend == "triton" and self.device == "cpu" and dtype == torch.bfloat16
        return 2.0**-7 if truncates else 0.0

    def op(self, name: str) -> Callable[..., Any]:
        """The overload of an op that is served here."""
        if self.library is not None:
            return self.library.op(name)  # type: ignore[no-any-return]
        reason = _backends.BACKENDS[self.backend].why_not(name, self.device)
        if reason is not None:
            pytest.skip(f"{self.backend}: {reason}")
        return _backends.select(name, torch.device(self.device), self.backend)  # type: ignore[no-any-return]


def _compact(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def _permuted(tensor: Tensor) -> Tensor:
    """The last dimension outermost in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def _sliced(tensor: Tensor) -> Tensor:
    """Every second element of a larger tensor, in every dimension; the rest is NaN."""
    room = tensor.new_full([2 * size + 1 for size in tensor.shape], torch.nan)
    view = room[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def _shifted(tensor: Tensor) -> Tensor:
    """Compact, but one element off the allocator's alignment."""
    room = tensor.new_empty(tensor.numel() + 1)
    return room[1:].view(tensor.shape).copy_(tensor)


LAYOUTS = {"compact": _compact, "permuted": _permuted, "sliced": _sliced, "shifted": _shifted}


@contextmanager
def fresh_memory_holds_nan() -> Iterator[None]:
    """What torch allocates is filled, so that an element that no kernel writes is seen."""
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(False)


def logits(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)


def kernels_of(call: Callable[[], Any]) -> list[str]:
    """The kernels that a call launches; copies and fills count as well."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
