"""The states of generators of random numbers, which a step that fails puts back."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from agm._module_state.capture import is_capturing

__all__ = ["comparable", "kept_generators"]


def kept_generators(*devices: torch.device) -> Callable[[], None]:
    """The states of the generators of the host and of these devices; the callable puts them back."""
    states: list[tuple[Callable[[Any], object], Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (np.random.set_state, np.random.get_state(legacy=False)),  # any kind of it, and sooner
        (random.setstate, random.getstate()),
    ]
    for device in devices:
        if device.type == "cuda" and not is_capturing():
            states.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))

    def put_back() -> None:
        for set_state, state in states:
            set_state(state)

    return put_back


def comparable(state: Any) -> Any:
    """The state of a generator of NumPy, as something that `==` compares: arrays in it by their bytes."""
    if isinstance(state, dict):
        return {name: comparable(value) for name, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state
