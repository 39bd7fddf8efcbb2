"""Tensors of a network that its forward writes to, told by their versions, and copies that stand in for them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["Place", "StandIn", "Tensors", "merged", "stand_ins"]

# What holds a tensor (a dictionary of a module, a list in an attribute), and under which name or number.
Place = tuple[Any, Any]
_OF_NORMS = frozenset(("running_mean", "running_var", "num_batches_tracked"))


class Tensors:
    """Parameters, buffers, tensors in attributes and in their containers, and which of them forward writes to.

    A write counts a version, by whatever function it comes; not one through NumPy or `Tensor.data`, nor that of batch
    norm to its running statistics, which are left out here.

    Args:
        modules: those of a network, and those hidden in it.
        containers: in attributes of these.

    Attributes:
        moving: places of tensors that a joint pass has written to; None: there has been none.
    """

    def __init__(self, modules: Sequence[nn.Module], containers: Iterable[Any] = ()) -> None:
        places: list[Place] = [place for module in modules for place in _places(module)]
        known = {id(held) for module in modules for held in (module._parameters, module._buffers)}
        for one in containers:
            if isinstance(one, (dict, list)) and id(one) not in known:
                items = one.items() if isinstance(one, dict) else enumerate(one)
                places += [(one, key) for key, value in items if isinstance(value, Tensor)]
        # The layer has them in a list, too: nothing can stand in for them.
        self._pinned = {id(module._parameters) for module in modules if isinstance(module, nn.RNNBase)}
        self._places = places
        self._are_plain = all(isinstance(held, dict) for held, _ in self._places)
        self._noted: list[tuple[int, int]] | None = None
        self.moving: list[Place] | None = None

    def note(self) -> None:
        """Notes the versions of now, before a joint pass."""
        self._noted = self._versions()

    def written(self) -> list[Place]:
        """Where tensors are that have been written to since, that are still there, and that others can stand in for."""
        if self._noted is None or (now := self._versions()) == self._noted:
            self.moving = self.moving or []
            return []
        both = zip(self._places, self._noted, now, strict=True)
        found = [place for place, (own, before), (other, after) in both if own == other and before != after]
        self.moving = merged(self.moving or (), found)
        return [place for place in found if id(place[0]) not in self._pinned]

    def all(self) -> list[Tensor]:
        """Those that are there now."""
        found = [_at(held, name) for held, name in self._places]
        return [tensor for tensor in found if isinstance(tensor, Tensor)]

    def moved(self) -> list[Tensor]:
        """The tensors in the places of `moving`."""
        found = [_at(held, name) for held, name in self.moving or ()]
        return [tensor for tensor in found if isinstance(tensor, Tensor)]

    def _versions(self) -> list[tuple[int, int]]:
        try:
            if self._are_plain:
                return [(id(tensor := held.get(name)), getattr(tensor, "_version", 0)) for held, name in self._places]
        except RuntimeError:  # a tensor of inference mode counts none
            pass
        found = [_at(held, name) for held, name in self._places]
        return [(id(x), 0 if not isinstance(x, Tensor) or x.is_inference() else x._version) for x in found]


def _places(module: nn.Module) -> list[Place]:
    own = vars(module)
    if isinstance(module, torch.jit.ScriptModule):  # it has none in Python
        return []
    left_out = _OF_NORMS if isinstance(module, _NormBase) else frozenset[str]()
    return [
        (held, name)
        for held in (module._parameters, module._buffers, own)
        for name, value in held.items()
        if isinstance(value, Tensor) and name not in left_out
    ]


def merged(places: Iterable[Place], others: Iterable[Place]) -> list[Place]:
    """All of these places, each once."""
    return list({(id(held), name): (held, name) for held, name in (*places, *others)}.values())


def _at(held: Any, name: Any) -> Any:
    if isinstance(held, dict):
        return held.get(name)
    return held[name] if name < len(held) else None


class StandIn:
    """A copy in the place of a tensor.

    Attributes:
        copy: what stands in.
    """

    def __init__(self, place: Place, copy: Tensor) -> None:
        self._held, self._name = place
        self._original: Any = None
        self.copy = copy

    def another(self, fresh: bool) -> "StandIn":
        """For another pass: with the same copy, or with a fresh one of it, as passes must have of which each writes."""
        copy = _typed(self.copy, self.copy.clone()) if fresh else self.copy
        return StandIn((self._held, self._name), copy)

    def begin(self) -> None:
        self._original = self._held[self._name]
        self._held[self._name] = self.copy

    def put_back(self) -> None:
        if self._original is not None:
            self._held[self._name] = self._original


def stand_ins(places: Sequence[Place]) -> list[StandIn]:
    """Copies of the tensors in these places, one of each; that of a parameter hands its gradient on to it."""
    originals = [held[name] for held, name in places]
    floating = [x for x in originals if x.is_floating_point() and not x.requires_grad]
    made: list[Tensor] = []
    if floating:
        with torch.no_grad():
            made = list(torch._foreach_mul([x.detach() for x in floating], 1.0))
    made.reverse()
    copies = [_typed(x, made.pop() if x.is_floating_point() and not x.requires_grad else x.clone()) for x in originals]
    if not torch.compiler.is_compiling():  # whose graph knows no `id`
        of: dict[int, Tensor] = {}
        copies = [of.setdefault(id(x), copy) for x, copy in zip(originals, copies, strict=True)]
    return list(map(StandIn, places, copies))


def _typed(original: Tensor, copy: Tensor) -> Tensor:
    is_frozen = isinstance(original, nn.Parameter) and not original.requires_grad
    return nn.Parameter(copy, requires_grad=False) if is_frozen else copy
