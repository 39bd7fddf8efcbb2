"""The states of the host's generators, which a step notes in case it fails, and nearly always finds as they were.

Python and NumPy build a state number by number (84 us together, a third of a small network's joint step). Whether a
generator has been drawn from, or set, since is seen in its memory, which is compared instead: a state is built anew
where it is another one.
"""

import random
from collections.abc import Callable
from ctypes import c_char
from functools import partial
from typing import Any

import numpy as np
import torch

from agm._module_state.capture import is_capturing

__all__ = ["kept_generators", "numpy_state", "python_state"]

_NUMPY: Any = np.random.get_state.__self__  # type: ignore[attr-defined]
_PYTHON: Any = random.getstate.__self__  # type: ignore[attr-defined]
_HEADER = object.__basicsize__  # the count of references comes first, and changes with who looks
_MT19937 = 625 * 4  # its words, and its place in these


def _memory(address: int, size: int) -> Any:
    return (c_char * size).from_address(address)


def _memory_of(value: Any) -> Any:
    """What an object has in its own memory."""
    return _memory(id(value) + _HEADER, type(value).__basicsize__ - _HEADER)


class _NumPy:
    """NumPy's generator of all that asks for none of its own."""

    def __init__(self) -> None:
        self._bits: Any = None
        self._own = _memory_of(_NUMPY)  # where a second number of a pair is kept
        self._words: Any = None
        self._before: Any = None
        self._state: Any = None

    def __call__(self) -> Any:
        """Its state."""
        bits = _NUMPY._bit_generator
        if type(bits) is not np.random.MT19937:  # set by `np.random.set_bit_generator`, and laid out otherwise
            return np.random.get_state(legacy=False)
        if bits is not self._bits:
            self._bits, self._words = bits, _memory(bits.ctypes.state_address, _MT19937)
            self._before = None
        memory = self._own.raw, self._words.raw
        if memory != self._before:
            self._before, self._state = memory, np.random.get_state()
        return self._state


class _Python:
    """The generator of `random`."""

    def __init__(self) -> None:
        self._own = _memory_of(_PYTHON)
        self._before: Any = None
        self._state: Any = None

    def __call__(self) -> Any:
        """Its state."""
        memory = self._own.raw, _PYTHON.gauss_next
        if memory != self._before:
            self._before, self._state = memory, random.getstate()
        return self._state


numpy_state = _NumPy()
python_state = _Python()


def kept_generators(*devices: torch.device) -> Callable[[], None]:
    """The states of the generators of the host and of these devices; the callable puts them back."""
    states: list[tuple[Callable[[Any], object], Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (np.random.set_state, numpy_state()),
        (random.setstate, python_state()),
    ]
    for device in devices:
        if device.type == "cuda" and not is_capturing():
            states.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))

    def put_back() -> None:
        for set_state, state in states:
            set_state(state)

    return put_back
