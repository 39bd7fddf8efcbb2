"""Kinds of objects that attributes hold: how the content of each is noted, compared and put back."""

import random
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable
from functools import partial
from operator import is_
from types import BuiltinMethodType, CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

from agm._module_state.generators import comparable

__all__ = ["CLASS", "ITERATOR", "KINDS", "MODULE", "OBJECT", "Kind", "Slots"]

_LARGE_ARRAY = 1 << 24  # bytes


class Kind:
    """How the content of a kind of object is noted and put back.

    Attributes:
        is_object: whether it is an object for its attributes, which not all are looked at.
        is_sized: whether it may hold too much to be copied in every step.
        draws: whether it is a generator of random numbers.
    """

    is_object = False
    is_sized = False
    draws = False

    def take(self, value: Any) -> Any:
        """A copy of its content; None: there is nothing to put back."""
        raise NotImplementedError

    def is_same(self, value: Any, content: Any) -> bool:
        return bool(self.take(value) == content)

    def fill(self, value: Any, content: Any) -> None:
        raise NotImplementedError

    def inner(self, content: Any) -> Iterable[Any]:
        """What may hold something in its turn."""
        return ()


class _Mapping(Kind):
    """A dict, past what a class of the user's own may do when it is written to."""

    base: type[dict[Any, Any]] = dict
    is_sized = True

    def take(self, value: Any) -> Any:
        return dict.copy(value)

    def is_same(self, value: Any, content: Any) -> bool:
        return len(value) == len(content) and all([dict.get(value, k, content) is x for k, x in content.items()])

    def fill(self, value: Any, content: Any) -> None:
        self.base.clear(value)
        self.base.update(value, content)

    def inner(self, content: Any) -> Iterable[Any]:
        return content.values()  # type: ignore[no-any-return]


class _Ordered(_Mapping):
    base = OrderedDict

    def take(self, value: Any) -> Any:
        return dict(OrderedDict.items(value))

    def is_same(self, value: Any, content: Any) -> bool:
        return super().is_same(value, content) and all(map(is_, OrderedDict.keys(value), content))


class _Sequence(Kind):
    is_sized = True

    def __init__(self, base: Any) -> None:
        self.base = base

    def take(self, value: Any) -> Any:
        return [*self.base.__iter__(value)]

    def is_same(self, value: Any, content: Any) -> bool:
        return len(value) == len(content) and all(map(is_, self.base.__iter__(value), content))

    def fill(self, value: Any, content: Any) -> None:
        self.base.clear(value)
        self.base.extend(value, content)

    def inner(self, content: Any) -> Iterable[Any]:
        return content  # type: ignore[no-any-return]


class _Set(Kind):
    is_sized = True

    def take(self, value: Any) -> Any:
        return set.copy(value)

    def is_same(self, value: Any, content: Any) -> bool:
        return len(value) == len(content) and all([one in content for one in set.__iter__(value)])

    def fill(self, value: Any, content: Any) -> None:
        set.clear(value)
        set.update(value, content)

    def inner(self, content: Any) -> Iterable[Any]:
        return content  # type: ignore[no-any-return]


class _Object(_Mapping):
    is_object = True
    is_sized = False

    def take(self, value: Any) -> Any:
        own = getattr(value, "__dict__", None)
        return own.copy() if type(own) is dict else None

    def is_same(self, value: Any, content: Any) -> bool:
        return super().is_same(vars(value), content)

    def fill(self, value: Any, content: Any) -> None:
        super().fill(vars(value), content)


class _Class(_Mapping):
    """A class for what it holds beside functions and descriptors: a counter, a list of all instances."""

    is_sized = False

    def take(self, value: Any) -> Any:
        return {k: x for k, x in vars(value).items() if k[:2] != "__" and not (callable(x) or hasattr(x, "__get__"))}

    def is_same(self, value: Any, content: Any) -> bool:
        now = vars(value)
        if all([now.get(name, content) is x for name, x in content.items()]):
            return len(self.take(value)) == len(content)
        return False

    def fill(self, value: Any, content: Any) -> None:
        for name in self.take(value).keys() - content.keys():
            type.__delattr__(value, name)
        for name, one in content.items():
            if vars(value).get(name, content) is not one:
                type.__setattr__(value, name, one)


class Slots(_Mapping):
    is_object = True
    is_sized = False

    def __init__(self, slots: Iterable[Any]) -> None:
        self.slots = {slot.__name__: slot for slot in slots}

    def take(self, value: Any) -> Any:
        return {name: slot.__get__(value) for name, slot in self.slots.items() if _is_set(slot, value)}

    def is_same(self, value: Any, content: Any) -> bool:
        return super().is_same(self.take(value), content)

    def fill(self, value: Any, content: Any) -> None:
        for name, slot in self.slots.items():
            if name in content:
                slot.__set__(value, content[name])
            elif _is_set(slot, value):
                slot.__delete__(value)


class _Array(Kind):
    def take(self, value: Any) -> Any:
        return value.copy() if value.nbytes <= _LARGE_ARRAY and value.flags.writeable else None

    def is_same(self, value: Any, content: Any) -> bool:
        if value.shape != content.shape or value.dtype.hasobject:
            return bool(value.shape == content.shape and all(map(is_, value.flat, content.flat)))
        return bool(np.array_equal(_bytes(value), _bytes(content)))

    def fill(self, value: Any, content: Any) -> None:
        if value.shape == content.shape:
            value[...] = content


class _Elements(Kind):
    def take(self, value: Any) -> Any:
        return value[:] if len(value) <= _LARGE_ARRAY else None

    def fill(self, value: Any, content: Any) -> None:
        value[:] = content


class _TorchGenerator(Kind):
    draws = True

    def take(self, value: Any) -> Any:
        return value.get_state() if value.device.type == "cpu" else None  # of others it may not be read in a capture

    def is_same(self, value: Any, content: Any) -> bool:
        return torch.equal(value.get_state(), content)

    def fill(self, value: Any, content: Any) -> None:
        value.set_state(content)


class _NumpyGenerator(Kind):
    draws = True

    def take(self, value: Any) -> Any:
        return value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state(legacy=False)

    def is_same(self, value: Any, content: Any) -> bool:
        return bool(comparable(self.take(value)) == comparable(content))

    def fill(self, value: Any, content: Any) -> None:
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = content
        else:
            value.set_state(content)


class _PythonGenerator(Kind):
    draws = True

    def take(self, value: Any) -> Any:
        return None if isinstance(value, random.SystemRandom) else value.getstate()

    def fill(self, value: Any, content: Any) -> None:
        value.setstate(content)


class _Tuple(Kind):
    """What stays as it is, but for what is in it."""

    def take(self, value: Any) -> Any:
        return value

    def is_same(self, value: Any, content: Any) -> bool:
        return True

    def inner(self, content: Any) -> Iterable[Any]:
        return content  # type: ignore[no-any-return]


class _Iterator(Kind):
    """What cannot be put back; see `StandIns`."""

    def take(self, value: Any) -> Any:
        return value

    def is_same(self, value: Any, content: Any) -> bool:
        return True


class _Bound(_Tuple):
    """A method of an object."""

    def inner(self, content: Any) -> Iterable[Any]:
        return (content.__self__,)


class _Partial(_Tuple):
    def inner(self, content: Any) -> Iterable[Any]:
        return content.func, *content.args, *content.keywords.values()


class _Closure(Kind):
    """A function, with the variables around it; those of torch and of this package have none."""

    def take(self, value: FunctionType) -> Any:
        home = (value.__module__ or "").partition(".")[0]
        if value.__closure__ is None or home in ("agm", "torch") or hasattr(value, "_torchdynamo_orig_callable"):
            return None
        return [_variable(cell) for cell in value.__closure__]

    def is_same(self, value: FunctionType, content: Any) -> bool:
        return all(_variable(cell) is one for cell, one in zip(value.__closure__ or (), content, strict=True))

    def fill(self, value: FunctionType, content: Any) -> None:
        for cell, one in zip(value.__closure__ or (), content, strict=True):
            if one is not _EMPTY:
                cell.cell_contents = one

    def inner(self, content: Any) -> Iterable[Any]:
        return content  # type: ignore[no-any-return]


OBJECT = _Object()
MODULE = _Object()
CLASS = _Class()
ITERATOR = _Iterator()
KINDS: list[tuple[type[Any] | tuple[type[Any], ...], Kind]] = [
    (OrderedDict, _Ordered()),
    (dict, _Mapping()),
    (list, _Sequence(list)),
    (deque, _Sequence(deque)),
    (set, _Set()),
    (np.ndarray, _Array()),
    ((bytearray, array), _Elements()),
    (torch.Generator, _TorchGenerator()),
    ((np.random.Generator, np.random.RandomState), _NumpyGenerator()),
    (random.Random, _PythonGenerator()),
    ((tuple, frozenset), _Tuple()),
    ((MethodType, BuiltinMethodType), _Bound()),
    (partial, _Partial()),
    (FunctionType, _Closure()),
]


def _bytes(value: Any) -> Any:
    """The very bits: a NaN is equal to itself."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _is_set(slot: Any, value: Any) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


_EMPTY = object()  # in the place of a variable that has no value yet


def _variable(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY
