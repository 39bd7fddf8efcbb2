"""What a failed step must not have moved: statistics, the state of the modulation, a thread's modes."""

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack, _pop_mode  # type: ignore[attr-defined]

from agm._module_state.capture import is_capturing
from agm._module_state.checkpoints import end_checkpoints, packing_hook
from agm._module_state.containers import noted
from agm._module_state.eval_mode import written_buffers
from agm._module_state.structure import Structure
from agm._module_state.writes import Writes

__all__ = ["first_writes", "kept_surroundings", "kept_values"]


def kept_values(network: Structure, modulation: Iterable[nn.Module], state: Iterable[Tensor]) -> Callable[[], None]:
    """Copies what a step writes to; the callable puts the values back.

    Of the network that is what norms and joint passes so far have written to, and all buffers before the first of them.
    What else that one writes to is copied meanwhile (`first_writes`). A parameter to which a later one is the first to
    write keeps that.

    Buffers that forward replaces by others, and generators of random numbers in attributes, are as before, too.

    Args:
        network: whose buffers, and parameters that forward itself moves, are among it.
        modulation: modules whose buffers are.
        state: of the modulation.
    """
    own: list[Tensor] = []
    if network.buffered:
        modules = [module for module in network.buffered if module.training]
        own += [buffer for _, _, buffer in written_buffers(modules)]
        every = [buffer for module in modules for buffer in module._buffers.values() if buffer is not None]
        first = network.tensors.moving is None
        own += [buffer for buffer in every if first or (buffer.dim() == 0 and not buffer.is_floating_point())]
    own += network.tensors.moved()
    own += state
    for module in modulation:
        own += [buffer for buffer in module._buffers.values() if buffer is not None] if module._buffers else []
    bound = [(held, held.copy()) for module in network.buffered if type(held := module._buffers) is dict]
    generators = [one for one in map(noted, network.generators) if one.content is not None]
    own = list({id(buffer): buffer for buffer in own}.values())
    copies = _copies(own)

    def put_back() -> None:
        if is_capturing():  # nothing has run
            return
        for current, before in bound:
            if any(current.get(name, before) is not buffer for name, buffer in before.items()):
                current.update(before)
        for generator in generators:
            generator.put_back()
        with torch._C.DisableTorchFunction():  # a mode may be left on by an interrupt
            for buffer, copy in zip(own, copies, strict=True):
                if not torch.equal(buffer, copy):
                    buffer.data.copy_(copy)  # as it was: `data` counts no version

    return put_back


def first_writes(network: Structure) -> Writes | None:
    """What copies parameters and the like that the first joint pass writes to; None where it cannot be seen to do so.

    In a compiled part graphs would break at every function that is watched.
    """
    return None if network.is_compiled else Writes(network.tensors.all)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of floating tensors in one operation, of whole numbers in another, and of what is neither."""
    copies: list[Tensor] = []
    alike: tuple[dict[int, Tensor], dict[int, Tensor]] = {}, {}
    for place, tensor in enumerate(tensors):
        own = tensor.detach() if tensor.requires_grad else tensor
        copies.append(own)
        if tensor.is_floating_point():
            alike[0][place] = own
        elif tensor.dtype in _WHOLE:
            alike[1][place] = own
        else:
            copies[place] = own.clone()
    for kind in alike:
        if kind:
            for place, copy in zip(kind, torch._foreach_mul(list(kind.values()), 1), strict=True):
                copies[place] = copy
    return copies


_WHOLE = (torch.int64, torch.int32)

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
        end_checkpoints(sys.exception())
        while (current := packing_hook()) is not None and current is not hook:
            torch._C._autograd._pop_saved_tensors_default_hooks()

    return put_back
