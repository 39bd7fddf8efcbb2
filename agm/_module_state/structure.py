"""What a network is made of, which nearly every step finds as the one before it did."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from agm._module_state.compiled import is_compiled
from agm._module_state.containers import contents, is_generator
from agm._module_state.eval_mode import counts, depends_on_mode, may_depend_on_mode
from agm._module_state.hooks import KINDS
from agm._module_state.modules import submodules
from agm._module_state.threads import OWN, own_of
from agm._module_state.traces import is_own
from agm._module_state.written import Tensors

__all__ = ["Structure", "Structures", "Ways"]

_Found = TypeVar("_Found")
_STRUCTURES = 8  # of one network, of which something is kept

Ways = set[tuple[int, int]]
"""Functions of torch that have run one after the other, in pairs."""


class Structure:
    """The modules in a root, and what holds for them until one is exchanged, changes its mode, or gets or loses a hook.

    Attributes:
        root: as given.
        modules: the root and all in it, each once.
        own: those whose forward may store something, see `is_own`.
        buffered: those with buffers.
        tensors: what forward may write to.
        generators: of random numbers, in attributes.
        hooked: those with forward hooks.
        is_compiled: whether `torch.compile` has been applied to one.
        exchanges: whether a norm exchanges statistics with other processes, where there are some.
        others_draw: whether another thread was seen to draw from the generators of Python and NumPy.
        left: where these were after a masked pass in which somebody has drawn.
        ways: functions of torch that have run one after the other in masked passes, in pairs.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules = submodules(root)
        self.own = [module for module in self.modules if is_own(module)]
        self.buffered = [module for module in self.modules if module._buffers]
        held, hidden = contents([module.__dict__ for module in self.own], self.own, set(self.modules))
        self.tensors = Tensors([*self.modules, *hidden], [one.value for one in held])
        self.generators = [x for module in self.own for x in vars(module).values() if is_generator(type(x))]
        self.hooked = [module for module in self.modules if any(module.__dict__[kind] for kind in KINDS)]
        self.is_compiled = any(map(is_compiled, self.modules))
        self.exchanges = any(isinstance(module, nn.SyncBatchNorm) for module in self.modules)
        self.others_draw = False
        self.left: tuple[Any, Any] | None = None
        self.ways: Ways = set()
        self._moded = [module for module in self.modules if may_depend_on_mode(module)]
        self._norms = [module for module in self.modules if isinstance(module, _BatchNorm)]
        self._counts = any(map(counts, self.modules))
        self._within = set(self.modules)
        self._parts: dict[nn.Module, Structure] = {}
        self._chosen: dict[Hashable, Any] = {}
        self._looks = _looks(self.modules)
        self._looks[:1] = map(_unguarded, self._looks[:1])

    def is_current(self, answers: bool = False) -> bool:
        """Whether everything is as it was, but for the root's forward where something `answers` in its place."""
        looks = _looks(self.modules)
        if answers:
            looks[0] = (*looks[0][:-1], self._looks[0][-1])
        elif looks and (looks[0][-1] is not None or looks[0][2] is not None):
            kind, training, compiled, *others, forward = looks[0]  # where it is refused to other threads, as before
            compiled, forward = getattr(compiled, OWN, compiled), getattr(forward, OWN, forward)
            looks[0] = (kind, training, compiled, *others, forward)
        return looks == self._looks

    def marks(self) -> object:
        """What another structure of the same network has as well if nothing has changed; it holds no module."""
        return tuple(
            (kind, training, id(compiled), *numbers, *(children or ()), id(forward))
            for kind, training, compiled, *numbers, children, forward in self._looks
        )

    def kept_in(self, store: dict[object, _Found], key: Hashable, make: Callable[[], _Found]) -> _Found:
        """What a store that outlives this structure keeps for all that have the same `marks`, made if there is none."""
        if key not in self._chosen:  # as in `chosen`: a step asks, and a call more would be felt
            if len(store) >= _STRUCTURES:
                store.clear()
            self._chosen[key] = store.setdefault(self.marks(), make())
        return self._chosen[key]  # type: ignore[no-any-return]

    def part(self, module: nn.Module) -> "Structure":
        """That of a module, which as a part of this one is as current as this one is."""
        found = self._parts.get(module)
        if found is None or not (module in self._within or found.is_current()):
            found = self._parts[module] = Structure(module)
        return found

    def mixes_samples(self) -> bool:
        """Whether there is a layer in which a row counts for others in eval mode too."""
        return self._counts or (len(self._norms) > 0 and any([norm.running_mean is None for norm in self._norms]))

    def depending(self) -> tuple[bool, ...]:
        """Of each layer that may depend on its mode whether it does so as it is now."""
        return tuple([module.training and depends_on_mode(module) for module in self._moded]) if self._moded else ()

    def chosen(self, key: Hashable, choose: Callable[[], _Found]) -> _Found:
        """What is chosen for this structure under a key: once, and kept as long as the structure stays."""
        if key not in self._chosen:
            self._chosen[key] = choose()
        return self._chosen[key]  # type: ignore[no-any-return]


def _looks(modules: list[nn.Module]) -> list[tuple[Any, ...]]:
    """What is another one once a module has changed. In one go: a step asks twice, of every module."""
    return [
        (
            type(module),
            module.training,
            (own := module.__dict__).get("_compiled_call_impl"),
            bool(own["_forward_hooks"] or own["_forward_pre_hooks"]),
            bool(own["_backward_hooks"] or own["_backward_pre_hooks"]),
            len(module._buffers),
            [*module._modules.keys(), *map(id, module._modules.values())] if module._modules else None,
            own.get("forward"),
        )
        for module in modules
    ]


def _unguarded(look: tuple[Any, ...]) -> tuple[Any, ...]:
    """The look of a root that is refused to other threads as it was before."""
    kind, training, compiled, *others, forward = look
    return (kind, training, own_of(compiled), *others, own_of(forward))


class Structures:
    """Structures of networks, each found anew where it has changed; the two last ones are known.

    A step may go to and fro between two, as one does whose head is replaced for a part of it.
    """

    def __init__(self) -> None:
        self._found: dict[nn.Module, list[Structure]] = {}

    def of(self, root: nn.Module) -> Structure | None:
        """The structure as it is now; None where a step is compiled, whose graph all that is known would guard."""
        if torch.compiler.is_compiling():
            return None
        known = self._found.setdefault(root, [])
        for structure in known:
            if structure.is_current():
                return structure
        known.insert(0, Structure(root))
        del known[2:]
        return known[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"_found": {}}  # a copy looks for itself
