"""The states of generators of random numbers, which a step that fails puts back."""

import ctypes
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from agm._module_state.capture import is_capturing

__all__ = ["comparable", "kept_generators", "numpy_state"]


def kept_generators(*devices: torch.device) -> Callable[[], None]:
    """The states of the generators of the host and of these devices; the callable puts them back."""
    states: list[tuple[Callable[[Any], object], Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (np.random.set_state, numpy_state()),
        (random.setstate, random.getstate()),
    ]
    for device in devices:
        if device.type == "cuda" and not is_capturing():
            states.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))

    def put_back() -> None:
        for set_state, state in states:
            set_state(state)

    return put_back


class _Known(threading.local):
    """The state that NumPy's generator was last seen in, and the memory that tells whether it still is."""

    memory: bytes | None = None
    state: dict[str, Any] | None = None


_known = _Known()
_MT19937 = 625 * 4  # bytes: 624 words, and the place among them


def numpy_state() -> dict[str, Any]:
    """`np.random.get_state(legacy=False)`, and the very same object while nothing has been drawn.

    To ask NumPy takes as long as ten small operations of torch, and a step asks several times. Its memory tells all of
    an MT19937 but a normal number that is kept for the next call; with one NumPy is asked.
    """
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if type(generator) is not np.random.MT19937:
        return np.random.get_state(legacy=False)
    memory = ctypes.string_at(generator.ctypes.state_address, _MT19937)
    if memory == _known.memory and _known.state is not None:
        return _known.state
    state: dict[str, Any] = np.random.get_state(legacy=False)
    _known.memory, _known.state = (None, None) if state["has_gauss"] else (memory, state)
    return state


def comparable(state: Any) -> Any:
    """The state of a generator of NumPy, as something that `==` compares: arrays in it by their bytes."""
    if isinstance(state, dict):
        return {name: comparable(value) for name, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state
