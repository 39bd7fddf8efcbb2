"""What attributes hold that forward may change in place: noted, compared, and filled again."""

import random
import sys
from argparse import Namespace
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Iterable, Iterator, Mapping
from types import MemberDescriptorType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Held", "contents", "home_of", "is_iterator"]

_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), Tensor, nn.Parameter))
_LARGE = 1000
_LARGE_ARRAY = 1 << 16  # bytes
_REGISTERED = ("_parameters", "_buffers", "_modules")
_OF_MODULES = frozenset(vars(nn.Module()))
_LIBRARIES = frozenset(("torch", "numpy", "tensorboard", "wandb"))
_BAGS = (SimpleNamespace, Namespace, UserDict, UserList, ChainMap)  # what of the standard library is like a user's own


class _Kind:
    """How the content of a kind of object is noted and put back.

    Attributes:
        is_object: whether it is an object for its attributes, which not all are looked at.
    """

    is_object = False

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


class _Mapping(_Kind):
    """A dict, past what a class of the user's own may do when it is written to."""

    base: type[dict[Any, Any]] = dict

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
        return super().is_same(value, content) and all(map(_is, OrderedDict.keys(value), content))


class _Sequence(_Kind):
    def __init__(self, base: Any) -> None:
        self.base = base

    def take(self, value: Any) -> Any:
        return [*self.base.__iter__(value)]

    def is_same(self, value: Any, content: Any) -> bool:
        return len(value) == len(content) and all(map(_is, self.base.__iter__(value), content))

    def fill(self, value: Any, content: Any) -> None:
        self.base.clear(value)
        self.base.extend(value, content)

    def inner(self, content: Any) -> Iterable[Any]:
        return content  # type: ignore[no-any-return]


class _Set(_Kind):
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

    def take(self, value: Any) -> Any:
        own = getattr(value, "__dict__", None)
        return own.copy() if type(own) is dict else None

    def is_same(self, value: Any, content: Any) -> bool:
        return super().is_same(vars(value), content)

    def fill(self, value: Any, content: Any) -> None:
        super().fill(vars(value), content)


class _Slots(_Mapping):
    is_object = True

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


class _Array(_Kind):
    def take(self, value: Any) -> Any:
        return value.copy() if value.nbytes <= _LARGE_ARRAY and value.flags.writeable else None

    def is_same(self, value: Any, content: Any) -> bool:
        return bool(value.shape == content.shape and value.tobytes() == content.tobytes())

    def fill(self, value: Any, content: Any) -> None:
        if value.shape == content.shape:
            value[...] = content


class _Elements(_Kind):
    def take(self, value: Any) -> Any:
        return value[:] if len(value) <= _LARGE_ARRAY else None

    def fill(self, value: Any, content: Any) -> None:
        value[:] = content


class _TorchGenerator(_Kind):
    def take(self, value: Any) -> Any:
        return value.get_state() if value.device.type == "cpu" else None  # of others it may not be read in a capture

    def is_same(self, value: Any, content: Any) -> bool:
        return torch.equal(value.get_state(), content)

    def fill(self, value: Any, content: Any) -> None:
        value.set_state(content)


class _NumpyGenerator(_Kind):
    def take(self, value: Any) -> Any:
        return value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state(legacy=False)

    def is_same(self, value: Any, content: Any) -> bool:
        return repr(self.take(value)) == repr(content) and _arrays_of(self.take(value)) == _arrays_of(content)

    def fill(self, value: Any, content: Any) -> None:
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = content
        else:
            value.set_state(content)


class _PythonGenerator(_Kind):
    def take(self, value: Any) -> Any:
        return None if isinstance(value, random.SystemRandom) else value.getstate()

    def fill(self, value: Any, content: Any) -> None:
        value.setstate(content)


class _Tuple(_Kind):
    """What stays as it is, but for what is in it."""

    def take(self, value: Any) -> Any:
        return value

    def is_same(self, value: Any, content: Any) -> bool:
        return True

    def inner(self, content: Any) -> Iterable[Any]:
        return content  # type: ignore[no-any-return]


class _Iterator(_Kind):
    """What cannot be put back; see `StandIns`."""

    def take(self, value: Any) -> Any:
        return value

    def is_same(self, value: Any, content: Any) -> bool:
        return True


_OBJECT = _Object()
_ITERATOR = _Iterator()
_KINDS: list[tuple[type[Any] | tuple[type[Any], ...], _Kind]] = [
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
]
_known: dict[type, tuple[_Kind, ...]] = {}


class Held:
    """A container, with what it has held.

    Attributes:
        content: a copy of what it held; the length alone, of a large one.
    """

    __slots__ = ("_kind", "_value", "content")

    def __init__(self, value: Any, kind: _Kind, content: Any) -> None:
        self._value, self._kind, self.content = value, kind, content

    @property
    def value(self) -> Any:
        """The container itself."""
        return self._value

    @property
    def is_iterator(self) -> bool:
        return self._kind is _ITERATOR

    def exchange(self, others: Mapping[int, Any]) -> None:
        """Puts others in the place of what it holds now, by their id; not in a tuple, nor in a large container."""
        if type(self.content) is int or not isinstance(self.content, (dict, list, set)):
            return
        content = self._kind.take(self._value)
        values = [*content.values()] if isinstance(content, dict) else [*content]
        if not any([id(one) in others for one in values]):
            return
        exchanged = [others.get(id(one), one) for one in values]
        self._kind.fill(
            self._value, dict(zip(content, exchanged, strict=True)) if isinstance(content, dict) else exchanged
        )

    def has_changed(self) -> bool:
        if type(self.content) is int:
            return len(self._value) != self.content
        return not self._kind.is_same(self._value, self.content)

    def put_back(self) -> None:
        if not self.has_changed():
            return
        if type(self.content) is not int:
            self._kind.fill(self._value, self.content)
            return
        while len(self._value) > self.content:
            self._value.popitem() if isinstance(self._value, dict) else self._value.pop()

    def inner(self) -> Iterable[Any]:
        """What it held."""
        return () if type(self.content) is int else self._kind.inner(self.content)


def contents(attributes: Iterable[dict[str, Any]], homes: frozenset[str] = frozenset()) -> list[Held]:
    """Containers that attributes hold, and those inside them, each with a copy of what it contains.

    Generators of random numbers, small arrays of NumPy, and objects of the user's own (a meter, a cache), which are
    taken for their attributes, are containers too. Of one that is too large to copy in every step (a vocabulary) only
    its length comes back, of a large array nothing.

    Args:
        attributes: of modules.
        homes: of the classes of these modules, see `home_of`: objects of theirs are followed into one another, all
            others once.
    """
    pending: list[tuple[Any, bool]] = []
    for kept in attributes:
        pending += [(kept[name], False) for name in _REGISTERED if kept.get(name)]
        pending += [(x, True) for name, x in kept.items() if type(x) not in _PLAIN and name not in _OF_MODULES]
    found: list[Held] = []
    seen: set[tuple[int, int]] = set()
    while pending:
        value, follows = pending.pop()
        kinds = _known.get(type(value))
        if kinds is None:
            kinds = _known[type(value)] = tuple(_kinds_of(type(value)))
        for kind in kinds:
            key = id(value), id(kind)
            if key in seen or (kind.is_object and not follows):
                continue
            seen.add(key)
            sized = isinstance(kind, (_Mapping, _Sequence, _Set)) and not kind.is_object and len(value) > _LARGE
            held = Held(value, kind, len(value) if sized else kind.take(value))
            if held.content is None:
                continue
            found.append(held)
            on = follows and (not kind.is_object or _follows(type(value), homes))
            pending += [(one, on) for one in held.inner() if type(one) not in _PLAIN]
    return found


def is_iterator(kind: type) -> bool:
    """Whether it is an iterator of Python's own; one of a user's class is an object for its attributes."""
    return issubclass(kind, Iterator) and kind.__module__ in ("builtins", "itertools")


def home_of(kind: type) -> str:
    """The package that a class is from."""
    return kind.__module__.partition(".")[0]


def _follows(kind: type, homes: frozenset[str]) -> bool:
    """Whether objects inside of one of this class are looked at; what this package knows of a network is its own."""
    home = home_of(kind)
    return home in homes and home != "agm"


def _kinds_of(kind: type) -> Iterator[_Kind]:
    if issubclass(kind, (nn.Module, Tensor, type)):
        return
    if is_iterator(kind):
        yield _ITERATOR
        return
    home = home_of(kind)
    for base, known in _KINDS:
        if issubclass(kind, base):
            if home != "torch" or kind is torch.Generator:
                yield known
            break
    stands_in = ("__call__", "__next__")  # for a forward or an iterator, and notes what it sees
    if home == "agm" and any(name in vars(base) for base in kind.__mro__ for name in stands_in):
        return
    if kind in _BAGS or not (home in sys.stdlib_module_names or home in _LIBRARIES):
        yield _OBJECT
        slots = [x for base in kind.__mro__ for x in vars(base).values() if type(x) is MemberDescriptorType]
        if slots:
            yield _Slots(slots)


def _is(left: object, right: object) -> bool:
    return left is right


def _is_set(slot: Any, value: Any) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _arrays_of(state: Any) -> list[bytes]:
    """The arrays in the state of a generator, whose `repr` leaves much of them out."""
    if isinstance(state, dict):
        return [one for value in state.values() for one in _arrays_of(value)]
    return [state.tobytes()] if isinstance(state, np.ndarray) else []
