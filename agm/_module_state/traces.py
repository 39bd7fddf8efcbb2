"""What forward leaves behind: put back after a masked pass, so that it is the joint pass's."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from operator import is_
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agm._module_state.checkpoints import CheckpointedRegions
from agm._module_state.compiled import is_compiled
from agm._module_state.containers import REGISTERED, contents
from agm._module_state.draws import Draws
from agm._module_state.iterators import StandIns
from agm._module_state.undo import Contexts, putting_back
from agm._module_state.writes import WRITES, Writes, kind_of
from agm._module_state.written import StandIn

if TYPE_CHECKING:
    from agm._module_state.structure import Structure, Ways

__all__ = ["Attributes", "Traces", "is_own", "untraced"]


def untraced(
    modules: Iterable[nn.Module],
    again: Callable[[], AbstractContextManager[object]],
    copies: Sequence[StandIn] = (),
) -> AbstractContextManager[object]:
    """`Traces` by itself, of a pass in whatever modes."""
    traces = Traces(list(modules), again, copies=copies)
    return Contexts(lambda: putting_back(traces.put_back, traces.begin), lambda: traces)


class Traces:
    """What a forward pass changes in modules, which is put back: attributes, containers, parameters and buffers.

    Attributes are put back as they were, with the content of the lists, dicts, sets and plain objects that they hold;
    for iterators among these copies stand in (`StandIns`).
    A parameter, a buffer or a tensor in an attribute that is written to gets its values back; it is copied when the
    write comes, so that a pass which writes to nothing copies nothing. Only functions of torch that are known to write
    are seen, and none in a network with compiled parts; what the joint pass has written to has a copy in its place.

    It begins before the pass, is entered for the pass, and puts back behind it.

    Args:
        modules: those of the network.
        again: enters the modes of this pass, see `CheckpointedRegions`.
        structure: of the network, if it is known.
        draws: what puts back the random numbers that are drawn; None: they stay drawn.
        copies: what stands in for tensors; the graph of the pass keeps what is written to it.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        again: Callable[[], AbstractContextManager[object]],
        structure: "Structure | None" = None,
        draws: Draws | None = None,
        copies: Sequence[StandIn] = (),
    ) -> None:
        self._modules = modules
        self._copies = copies
        self._again = again
        self._structure = structure
        self._draws = draws
        self._attributes: Attributes | None = None
        self._watch: _Watch | None = None
        self._stand_ins: StandIns | None = None

    def begin(self) -> None:
        """Notes what is there."""
        known = self._structure
        self._attributes = attributes = Attributes(self._modules, None if known is None else known.own)
        # In a compiled part graphs would break at every function that is watched.
        compiled = any(map(is_compiled, self._modules)) if known is None else known.is_compiled
        if not compiled and not _have_graph(attributes.kept):
            ways = set() if known is None else known.ways
            self._watch = _Watch(self._modules, attributes, self._again, self._draws, self._copies, ways)
        if self._draws is not None:
            self._draws.begin()
        self._stand_ins = StandIns(attributes.kept, attributes.held)
        self._stand_ins.begin()

    def put_back(self) -> None:
        """Leaves everything as it was noted."""
        if self._watch is not None:
            self._watch.restore()
        if self._stand_ins is not None:
            self._stand_ins.put_back()
        if self._attributes is not None:
            self._attributes.put_back()
        if self._draws is not None:
            self._draws.put_back()

    def __enter__(self) -> None:
        if self._watch is not None:
            self._watch.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._watch is not None:
            self._watch.__exit__(*error)


class Attributes:
    """The attributes of modules, and the content of what those hold whose forward may store something.

    The mode and the values of tensors are left out.

    Args:
        modules: those of a network.
        own: such modules; None: those for which `is_own` holds.

    Attributes:
        kept: of each module its attributes, and a copy of them.
        held: the containers among those of `own`.
        hidden: modules in these containers that are none of the network's.
    """

    def __init__(self, modules: Iterable[nn.Module], own: Iterable[nn.Module] | None = None) -> None:
        modules = [*modules]
        owners = [module for module in modules if is_own(module)] if own is None else [*own]
        self.kept = [(module.__dict__, module.__dict__.copy()) for module in modules]
        self.held, self.hidden = contents([module.__dict__ for module in owners], owners, set(modules))
        # No containers yet, but where forward may register a first parameter, buffer or module.
        self._empty: list[dict[str, Any]] = []
        for module in owners:
            for name in REGISTERED:
                if (registry := module.__dict__.get(name)) == {}:
                    self._empty.append(registry)

    def have_changed(self) -> bool:
        """Whether an attribute is another one, or a container holds something else."""
        return (
            any(_differ(*both) for both in self.kept)
            or any(held.has_changed() for held in self.held)
            or any(self._empty)
        )

    def put_back(self) -> None:
        """Leaves everything as it was."""
        for current, kept in self.kept:
            if len(current) == len(kept) and all(map(is_, current.values(), kept.values())):
                continue
            if _differ(current, kept):
                mode = {name: current[name] for name in ("training",) if name in current}  # is put back by itself
                current.clear()
                current.update(kept)
                current.update(mode)
        for held in self.held:
            held.put_back()
        for registry in self._empty:
            if registry:
                registry.clear()


def _differ(current: dict[str, Any], kept: dict[str, Any]) -> bool:
    if len(current) != len(kept):
        return True
    return any([current.get(name, kept) is not value and name != "training" for name, value in kept.items()])


def is_own(module: nn.Module) -> bool:
    """Whether its forward may store something in it or in what it holds: those of torch's layers do not.

    Where one holds a container, somebody has put it there, and a forward around it may.
    """
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules.") or isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        return True
    if any([type(x) in _CONTAINERS and name[0] != "_" for name, x in module.__dict__.items()]):
        return True
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not kind.forward


_CONTAINERS = frozenset((list, dict, set, deque, OrderedDict, defaultdict, Counter))


def _have_graph(kept: list[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Whether a compiled function is among attributes."""
    for _, attributes in kept:
        for value in attributes.values():
            if isinstance(value, FunctionType) and hasattr(value, "_torchdynamo_orig_callable"):
                return True
    return False


class _Watch(Writes):
    """Copies what belongs to the network before the pass writes to it."""

    def __init__(
        self,
        modules: list[nn.Module],
        attributes: Attributes,
        again: Callable[[], AbstractContextManager[object]],
        draws: Draws | None,
        copies: Sequence[StandIn],
        ways: "Ways",
    ) -> None:
        super().__init__(self._of_network)
        self._modules = modules
        self._draws = draws
        self._attributes = attributes
        self._regions = CheckpointedRegions(again)
        self._stand_ins = copies
        self._ways = ways
        self._last = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        regions = self._regions
        if regions.open or _saved_hooks(True) is not None or not torch.is_grad_enabled():
            regions.settle()
        kind = WRITES.get(func)
        if kind is None:
            kind = WRITES[func] = kind_of(func)
        now = _STEPS.get(func)
        if now is None:
            now = _STEPS[func] = 0 if getattr(func, "__name__", "") in _LOOKS else hash(func)
        if now:
            if self._last:
                self._ways.add((self._last, now))
            self._last = now
        if kind or (kwargs and "out" in kwargs):
            if self._draws is not None and kind.startswith("draw"):
                self._draws.before(kind[len("draw ") :], args, kwargs or {})
            self.before(kind, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _of_network(self) -> Iterator[Tensor]:
        for module in (*self._modules, *self._attributes.hidden):
            yield from (x for x in module._parameters.values() if x is not None)
            yield from (x for x in module._buffers.values() if x is not None)
        inside = [held.inner() for held in self._attributes.held]
        for values in (*(kept.values() for _, kept in self._attributes.kept), *inside):
            for value in values:
                if isinstance(value, Tensor):
                    yield value
                elif isinstance(value, tuple):
                    yield from (x for x in value if isinstance(x, Tensor))

    def restore(self) -> None:
        self._regions.close()
        if not self._copies and not self._data:
            return
        with torch._C.DisableTorchFunction():  # a mode may be left on by an interrupt
            for one in self._stand_ins:
                if (known := self._copies.pop(id(one.copy), None)) is not None:
                    # The graph of this pass has what was written; who enters again begins anew.
                    one.copy = known[1].requires_grad_(known[0].requires_grad)
        self.put_back()


# Function -> its number among ways, 0 for those that look at a tensor without computing anything of it.
_STEPS: dict[Any, int] = {}
_NAMES = "__get__ __len__ dim ndimension size numel nelement stride is_floating_point is_complex"
_LOOKS = frozenset(_NAMES.split())
_saved_hooks = torch._C._autograd._top_saved_tensors_default_hooks
