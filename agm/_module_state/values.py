"""What a failed step must not have moved: statistics, the state of the modulation, generators, a thread's modes."""

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack, _pop_mode  # type: ignore[attr-defined]

from agm._module_state.capture import is_capturing
from agm._module_state.checkpoints import packing_hook
from agm._module_state.eval_mode import written_buffers
from agm._module_state.modules import submodules

__all__ = ["kept_generators", "kept_surroundings", "kept_values"]


def kept_values(network: nn.Module, state: Iterable[Tensor]) -> Callable[[], None]:
    """Copies the buffers and the state that a step writes to; the callable puts their values back."""
    modules = [module for module in submodules(network) if module.training]
    own = [buffer for _, _, buffer in written_buffers(modules)]
    every = [buffer for module in modules for buffer in module._buffers.values() if buffer is not None]
    own += [buffer for buffer in every if buffer.dim() == 0 and not buffer.is_floating_point()]  # numbers of batches
    own += state
    own = list({id(buffer): buffer for buffer in own}.values())
    with torch.no_grad():
        copies = _copies(own)

    def put_back() -> None:
        if is_capturing():  # nothing has run
            return
        with torch._C.DisableTorchFunction():  # a mode may be left on by an interrupt
            for buffer, copy in zip(own, copies, strict=True):
                if not torch.equal(buffer, copy):
                    buffer.data.copy_(copy)  # as it was: `data` counts no version

    return put_back


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of floating tensors in one operation, of whole numbers in another, and of what is neither."""
    copies: dict[int, Tensor] = {}
    for kind in (torch.Tensor.is_floating_point, _is_whole):
        alike = [tensor for tensor in tensors if kind(tensor)]
        made = torch._foreach_mul(alike, 1) if alike else ()
        copies.update((id(tensor), copy) for tensor, copy in zip(alike, made, strict=True))
    return [copies[id(tensor)] if id(tensor) in copies else tensor.clone() for tensor in tensors]


def _is_whole(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32)


def kept_generators(*devices: torch.device) -> Callable[[], None]:
    """The states of the generators of the host and of these devices; the callable puts them back."""
    states: list[tuple[Callable[[Any], object], Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (np.random.set_state, np.random.get_state()),
        (random.setstate, random.getstate()),
    ]
    for device in devices:
        if device.type == "cuda" and not is_capturing():
            states.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))

    def put_back() -> None:
        for set_state, state in states:
            set_state(state)

    return put_back


_entered: list[object] = []


def kept_surroundings() -> Callable[[], None]:
    """Whether gradients are on, and which modes and hooks are on this thread; the callable puts that back."""
    gradients = torch.is_grad_enabled()
    modes = _len_torch_function_stack()
    hook = packing_hook()
    functions = torch._C._is_torch_function_enabled()

    def put_back() -> None:
        torch.set_grad_enabled(gradients)
        if functions and not torch._C._is_torch_function_enabled():  # an interrupt before the guard's own end
            guard = torch._C._EnableTorchFunction()
            guard.__enter__()
            _entered.append(guard)  # its end would switch them off again
        while _len_torch_function_stack() > modes:
            _pop_mode()
        while (current := packing_hook()) is not None and current is not hook:
            torch._C._autograd._pop_saved_tensors_default_hooks()

    return put_back
