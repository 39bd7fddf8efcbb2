"""What forward leaves behind: put back after a masked pass, so that it is the joint pass's."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agm._module_state.checkpoints import CheckpointedRegions
from agm._module_state.compiled import is_compiled
from agm._module_state.containers import contents, home_of
from agm._module_state.draws import Draws, may_draw
from agm._module_state.iterators import StandIns
from agm._module_state.undo import Contexts, putting_back

if TYPE_CHECKING:
    from agm._module_state.structure import Structure

__all__ = ["Attributes", "Traces", "is_own", "untraced"]


def untraced(
    modules: Iterable[nn.Module], again: Callable[[], AbstractContextManager[object]]
) -> AbstractContextManager[object]:
    """`Traces` by itself, of a pass in whatever modes."""
    traces = Traces(list(modules), again)
    return Contexts(lambda: putting_back(traces.put_back, traces.begin), lambda: traces)


class Traces:
    """What a forward pass changes in modules, which is put back: attributes, containers, parameters and buffers.

    Attributes are put back as they were, with the content of the lists, dicts, sets and plain objects that they hold;
    for iterators among these copies stand in (`StandIns`).
    A parameter, a buffer or a tensor in an attribute that is written to gets its values back; it is copied when the
    write comes, so that a pass which writes to nothing copies nothing. In a network with compiled parts such writes
    are not seen, and stay.

    It begins before the pass, is entered for the pass, and puts back behind it.

    Args:
        modules: those of the network.
        again: enters the modes of this pass, see `CheckpointedRegions`.
        structure: of the network, if it is known.
        draws: what puts back the random numbers that are drawn; None: they stay drawn.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        again: Callable[[], AbstractContextManager[object]],
        structure: "Structure | None" = None,
        draws: Draws | None = None,
    ) -> None:
        self._modules = modules
        self._again = again
        self._structure = structure
        self._draws = draws
        self._attributes: Attributes | None = None
        self._watch: _Watch | None = None
        self._stand_ins: StandIns | None = None

    def begin(self) -> None:
        """Notes what is there."""
        known = self._structure
        self._attributes = attributes = Attributes(self._modules if known is None else known.own, known is not None)
        # In a compiled part graphs would break at every function that is watched.
        compiled = any(map(is_compiled, self._modules)) if known is None else known.is_compiled
        if not compiled and not _have_graph(attributes.kept):
            self._watch = _Watch(self._modules, attributes, self._again, self._draws)
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
    """The attributes of modules whose forward may store something, and the content of what they hold.

    The mode and the values of tensors are left out.

    Args:
        modules: those of a network.
        are_own: whether all of them are such modules.

    Attributes:
        kept: of each module its attributes, and a copy of them.
        held: the containers among them.
    """

    def __init__(self, modules: Iterable[nn.Module], are_own: bool = False) -> None:
        owners = [module for module in modules if are_own or is_own(module)]
        self.kept = [(vars(module), dict(vars(module))) for module in owners]
        self.held = contents([kept for _, kept in self.kept], frozenset([home_of(type(one)) for one in owners]))

    def have_changed(self) -> bool:
        """Whether an attribute is another one, or a container holds something else."""
        return any(_differ(*both) for both in self.kept) or any(held.has_changed() for held in self.held)

    def put_back(self) -> None:
        """Leaves everything as it was."""
        for current, kept in self.kept:
            if _differ(current, kept):
                mode = {name: current[name] for name in ("training",) if name in current}  # is put back by itself
                current.clear()
                current.update(kept)
                current.update(mode)
        for held in self.held:
            held.put_back()


def _differ(current: dict[str, Any], kept: dict[str, Any]) -> bool:
    if len(current) != len(kept):
        return True
    return any([current.get(name, kept) is not value and name != "training" for name, value in kept.items()])


def is_own(module: nn.Module) -> bool:
    """Whether its forward may store something: those of torch's layers do not."""
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules."):
        return True
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not kind.forward


def _have_graph(kept: list[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Whether a compiled function is among attributes."""
    for _, attributes in kept:
        for value in attributes.values():
            if isinstance(value, FunctionType) and hasattr(value, "_torchdynamo_orig_callable"):
                return True
    return False


class _Watch(TorchFunctionMode):
    """Copies what belongs to the network before the pass writes to it."""

    def __init__(
        self,
        modules: list[nn.Module],
        attributes: Attributes,
        again: Callable[[], AbstractContextManager[object]],
        draws: Draws | None,
    ) -> None:
        super().__init__()
        self._modules = modules
        self._draws = draws
        self._attributes = attributes
        self._regions = CheckpointedRegions(again)
        self._storages: dict[int, Tensor] | None = None
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._data: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        regions = self._regions
        if regions.open or _saved_hooks(True) is not None or not torch.is_grad_enabled():
            regions.settle()
        kind = _WRITES.get(func)
        if kind is None:
            kind = _WRITES[func] = _kind_of(func)
        if kind:
            self._before(kind, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _before(self, kind: str, args: Any, kwargs: Any) -> None:
        if kind.startswith("draw"):
            if self._draws is not None:
                self._draws.before(kind[len("draw ") :], args, kwargs)
            if not kind.endswith("_"):
                return
            kind = "first"
        if kind == "data" and isinstance(args[0], Tensor) and self._owner(args[0]) is not None:
            self._data.append((args[0], args[0].data))
            return
        written = args[:1] if kind != "norm" else args[1:3]
        if kind == "norm" and not (kwargs.get("training", args[5] if len(args) > 5 else False)):
            return
        for tensor in (*written, kwargs.get("out"), kwargs.get("running_mean"), kwargs.get("running_var")):
            owner = self._owner(tensor) if isinstance(tensor, Tensor) else None
            if owner is not None and id(owner) not in self._copies:
                self._copies[id(owner)] = (owner, owner.detach().clone())

    def _owner(self, tensor: Tensor) -> Tensor | None:
        """The tensor of the network that shares its memory."""
        if self._storages is None:
            self._storages = {}
            for owner in self._tensors():
                if (address := _address(owner)) is not None:
                    self._storages.setdefault(address, owner)
        address = _address(tensor)
        return None if address is None else self._storages.get(address)

    def _tensors(self) -> Iterator[Tensor]:
        for module in self._modules:
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
        with torch.no_grad(), torch._C.DisableTorchFunction():  # a mode may be left on by an interrupt
            for owner, values in self._copies.values():
                owner.data.copy_(values)  # no new version: a graph of before may have saved it
        for owner, data in reversed(self._data):
            owner.data = data


_saved_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_WRITES: dict[Any, str] = {}  # function -> "" if it writes to nothing, "first", "norm", "data" or "draw" and its name
_IN_PLACE = re.compile(r"__(setitem|i(add|sub|mul|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift))__|\w*[^_]_")


def _kind_of(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if func == Tensor.data.__set__:  # type: ignore[attr-defined]
        return "data"
    if name in ("batch_norm", "instance_norm"):
        return "norm"
    if may_draw(name):
        return f"draw {name}"
    return "first" if _IN_PLACE.fullmatch(name) else ""


def _address(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # it has no memory of its own to write to
        return None
