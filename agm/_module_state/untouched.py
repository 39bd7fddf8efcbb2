"""A look at a network with real numbers, after which it is as before."""

import random
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._module_state.capture import is_capturing
from agm._module_state.generators import kept_generators
from agm._module_state.undo import putting_back

__all__ = ["draw_on", "untouched"]


def untouched(module: nn.Module, inputs: Any) -> AbstractContextManager[None]:
    """Buffers and random numbers are as before afterwards; in a captured step not the random numbers of a GPU.

    Buffers are replaced rather than written to: an earlier forward may still have its backward before it.

    Args:
        module: the network.
        inputs: tensors on the devices whose generators may be drawn from.
    """
    copies: dict[Tensor, Tensor] = {}
    own = [(m, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    is_compiling = torch.compiler.is_compiling()  # no graph reads the state of a generator
    generators = {} if is_compiling else _generators(inputs)
    # Those of the host, Python's and NumPy's among them.
    put_back_generators = (lambda: None) if is_compiling else kept_generators()

    def begin() -> None:
        for layer, name, buffer in own:
            layer._buffers[name] = copies.setdefault(buffer, buffer.clone())

    def put_back() -> None:
        for layer, name, buffer in own:
            layer._buffers[name] = buffer
        put_back_generators()
        for device, state in generators.items():
            _set_generator(device, state)

    return putting_back(put_back, begin)


def draw_on(device: torch.device) -> None:
    """Draws from each generator of random numbers, inside of `untouched`: who draws then draws others."""
    for where in {torch.device("cpu"), device}:
        torch.rand(3, device=where)
    random.random()
    np.random.random_sample()


def _generators(inputs: Any) -> dict[torch.device, Tensor]:
    """The state of the generators of other devices that a pass over the inputs may draw from."""
    devices = {leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)}
    found: dict[torch.device, Tensor] = {}
    if is_capturing():  # when no generator of a GPU can be read
        return found
    for device in sorted(devices - {torch.device("cpu")}, key=str):
        found[device] = torch.get_device_module(device).get_rng_state(*_which(device))
    return found


def _set_generator(device: torch.device, state: Tensor) -> None:
    torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.index is None or device.type == "mps" else (device,)  # there is one alone
