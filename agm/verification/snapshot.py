"""Modules and random generators put back to what they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from agm._module_state.containers import REGISTERED, contents
from agm._module_state.generators import kept_generators
from agm._module_state.iterators import StandIns, copy_of
from agm.verification.distances import is_same

__all__ = ["Counted", "preserved"]


class Counted:
    """Stands in for an iterator that cannot be copied (a generator), and counts what is drawn from it.

    Args:
        iterator: from which something is drawn.
        drawn: what others before this one have drawn, which it gives again; it grows.
    """

    def __init__(self, iterator: Iterator[Any], drawn: list[Any]) -> None:
        self._iterator = iterator
        self._drawn = drawn
        self.draws = 0

    def __iter__(self) -> "Counted":
        return self

    def __next__(self) -> Any:
        if self.draws == len(self._drawn):
            self._drawn.append(next(self._iterator))
        self.draws += 1
        return self._drawn[self.draws - 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


@contextmanager
def preserved(root: nn.Module) -> Iterator[Callable[[], None]]:
    """Puts everything back in the end, also on errors, and whenever the callable that it yields is called.

    That is, of every module: its attributes, the content of those that are containers, the values of those that are
    tensors (parameters and buffers among them) or generators, gradients; and the generators of torch (CPU, CUDA), numpy
    and Python.
    Iterators among these have copies in their place inside, or `Counted` where there are none: what is drawn from such
    a one is gone.
    What batch norm wrote to is again what graphs built before have saved, and they take it.
    """
    modules = list(root.modules())
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    containers, hidden = contents([kept for _, kept in attributes], modules, set(modules))
    # Hooks too, which a network may register on itself in its first forward.
    hooks = [(kept[name], kept[name].copy()) for _, kept in attributes for name in _HOOKS if kept.get(name) is not None]
    # An empty one is no container above.
    empty = [kept[name] for _, kept in attributes for name in REGISTERED if kept.get(name) == {}]
    inside = [value for held in containers for value in held.inner() if isinstance(value, Tensor)]
    tensors = {id(tensor): (tensor, tensor.detach().clone()) for tensor in (*_tensors([*modules, *hidden]), *inside)}
    gradients = [(parameter, parameter.grad) for parameter in root.parameters()]
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    put_back_generators = kept_generators(*devices)
    generators = [(generator, generator.get_state()) for generator in _generators(modules)]

    def put_back() -> None:
        for current, kept in attributes:
            current.clear()
            current.update(kept)
        for held in containers:
            held.put_back()
        for registry in empty:
            registry.clear()
        for registered, before in hooks:
            registered.clear()
            registered.update(before)
        with torch.no_grad():
            for tensor, value in tensors.values():
                # Not by versions: batch norm writes to its running statistics without counting one.
                if not is_same(tensor, value):
                    tensor.data.copy_(value)  # as it was: `data` counts no version either
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        put_back_generators()
        for generator, state in generators:
            generator.set_state(state)

    drawn: dict[int, list[Any]] = {}

    def copied(iterator: Iterator[Any]) -> Any:
        return copy_of(iterator) or Counted(iterator, drawn.setdefault(id(iterator), []))

    def stand_in() -> None:
        StandIns(attributes, containers, copied).begin()

    def restore() -> None:
        put_back()
        stand_in()

    try:
        stand_in()
        yield restore
    finally:
        put_back()


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        values = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        yield from (value for value in values if isinstance(value, Tensor))


def _generators(modules: list[nn.Module]) -> list[torch.Generator]:
    own = {id(x): x for module in modules for x in vars(module).values() if isinstance(x, torch.Generator)}
    return list(own.values())
