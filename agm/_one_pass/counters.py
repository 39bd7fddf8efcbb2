"""The counters of batches that norms keep: counted all at once rather than one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agm._module_state.replace_forward import answering, called_function
from agm._one_pass.rules import tensors_in

__all__ = ["Counters", "CountingTogether", "has_counters"]


class Counters:
    """Counters to which one is added in a pass, in a single operation at its end."""

    def __init__(self) -> None:
        self._waiting: dict[int, Tensor] = {}
        self._counted: list[Tensor] = []

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether it has been counted in this pass."""
        return id(tensor) in self._waiting or any(tensor is one for one in self._counted)

    def takes(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a function adds one to a whole number, which is then done later."""
        if name != "add_" or kwargs or len(args) != 2 or type(args[1]) is not int or args[1] != 1:
            return False
        counter = args[0]
        if not isinstance(counter, Tensor) or counter.dim() or counter.is_floating_point() or counter in self:
            return False
        self._waiting[id(counter)] = counter
        return True

    def catch_up(self, tensor: Tensor) -> None:
        """Counts at once what is about to be read."""
        if self._waiting.pop(id(tensor), None) is not None:
            with torch.no_grad():
                tensor.add_(1)
            self._counted.append(tensor)

    def commit(self) -> None:
        """Counts the rest."""
        if self._waiting:
            with torch.no_grad():
                torch._foreach_add_(list(self._waiting.values()), 1)

    def undo(self) -> None:
        """Takes back what has been counted."""
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for counter in self._counted:
                counter.sub_(1)


class _Watch(TorchFunctionMode):
    def __init__(self, counters: Counters) -> None:
        super().__init__()
        self.counters = counters

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.counters.takes(getattr(func, "__name__", ""), args, kwargs):
            return args[0]
        for tensor in tensors_in((*args, *kwargs.values())):
            self.counters.catch_up(tensor)
        return func(*args, **kwargs)


def has_counters(modules: Sequence[nn.Module]) -> bool:
    """Whether there are norms that count the batches of a training step."""
    return any(module.training and module._buffers.get("num_batches_tracked") is not None for module in modules)


class CountingTogether:
    """A module's forward whose norms count their batches together.

    Args:
        module: that module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward = called_function(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        counters = Counters()
        with answering({self.module: self.forward}):
            try:
                with _Watch(counters):
                    return self.forward(*args, **kwargs)
            finally:
                counters.commit()
