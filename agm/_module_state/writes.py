"""Functions of torch that write to tensors, and copies of what they are about to write to."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from agm._module_state.draws import may_draw

__all__ = ["WRITES", "Writes", "kind_of"]

# Function -> what it writes to: "" nothing but an `out`, "first", "norm", "observer", "embedding", "data", "schema", or
# "draw" and its name.
WRITES: dict[Any, str] = {}
# Which arguments; of others the first.
_WRITTEN = {"": slice(0), "norm": slice(1, 3), "observer": slice(3, 7), "embedding": slice(1, 2)}
_BY_NAME = ("out", "running_mean", "running_var")
_SHARES = frozenset(("numpy", "__array__", "__dlpack__"))  # hands out memory, to which anybody may write
_IN_PLACE = re.compile(r"__(setitem|i(add|sub|mul|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift))__|\w*[^_]_")


class Writes(TorchFunctionMode):
    """Copies tensors before functions of torch write to them inside, so that their values can be put back.

    Args:
        tensors: finds those that are not to be lost, once something is written to.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        self._tensors = tensors  # a step makes some of these: torch's own part of this does nothing
        self._storages: dict[int, Tensor] | None = None
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._data: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = WRITES.get(func)
        if kind is None:
            kind = WRITES[func] = kind_of(func)
        if kind or (kwargs and "out" in kwargs):
            self.before(kind, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def before(self, kind: str, func: Any, args: Any, kwargs: Any) -> None:
        """A function is about to run that writes to something, as its `kind` says."""
        if kind.startswith("draw"):
            if not kind.endswith("_"):
                return
            kind = "first"
        if kind == "data" and isinstance(args[0], Tensor) and self._owner(args[0]) is not None:
            self._data.append((args[0], args[0].data))
            return
        if kind == "norm" and not (kwargs.get("training", args[5] if len(args) > 5 else False)):
            return
        if kind == "embedding" and kwargs.get("max_norm", args[3] if len(args) > 3 else None) is None:
            return
        if kind == "schema":
            written: Any = _of_schema(func, args, kwargs)
        else:
            written = (*args[_WRITTEN.get(kind, slice(1))], *map(kwargs.get, _BY_NAME))
        for one in written:
            for tensor in one if isinstance(one, (list, tuple)) else (one,):
                owner = self._owner(tensor) if isinstance(tensor, Tensor) else None
                if owner is not None and id(owner) not in self._copies:
                    self._copies[id(owner)] = (owner, owner.detach().clone())

    def _owner(self, tensor: Tensor) -> Tensor | None:
        """Of the tensors that are not to be lost the one that shares its memory."""
        if self._storages is None:
            self._storages = {}
            for owner in self._tensors():
                if (address := _address(owner)) is not None:
                    self._storages.setdefault(address, owner)
        address = _address(tensor)
        return None if address is None else self._storages.get(address)

    def put_back(self) -> None:
        """Gives them the values that they had."""
        if not self._copies and not self._data:
            return
        with torch.no_grad(), torch._C.DisableTorchFunction():  # a mode may be left on by an interrupt
            for owner, values in self._copies.values():
                owner.data.copy_(values)  # no new version: a graph of before may have saved it
        for owner, data in reversed(self._data):
            owner.data = data


def kind_of(func: Any) -> str:
    """What a function writes to, for `WRITES`."""
    name = getattr(func, "__name__", "")
    if func == Tensor.data.__set__:  # type: ignore[attr-defined]
        return "data"
    if name in ("batch_norm", "instance_norm"):
        return "norm"
    if name in ("embedding", "embedding_bag"):
        return "embedding"
    if name == "fused_moving_avg_obs_fake_quant":
        return "observer"
    if may_draw(name):
        return f"draw {name}"
    if isinstance(func, _OPERATORS):
        return "schema" if _written_by(func) else ""
    return "first" if name in _SHARES or _IN_PLACE.fullmatch(name) else ""


_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


@cache
def _written_by(operator: Any) -> tuple[tuple[int, str], ...]:
    """Places and names of the arguments that an operator of a library writes to."""
    if isinstance(operator, torch._ops.OpOverload):
        overloads = [operator]
    else:
        overloads = [getattr(operator, name) for name in operator.overloads()]
    arguments = (both for one in overloads for both in enumerate(one._schema.arguments))
    return tuple((place, x.name) for place, x in arguments if x.alias_info is not None and x.alias_info.is_write)


def _of_schema(operator: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    for place, name in _written_by(operator):
        yield kwargs[name] if name in kwargs else args[place] if place < len(args) else None


def _address(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError, ValueError):  # it has no memory of its own to write to, or none yet
        return None
