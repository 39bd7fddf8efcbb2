"""What attributes hold that forward may change in place: noted, compared, and filled again."""

import queue
import sys
from argparse import Namespace
from collections import ChainMap, UserDict, UserList
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MemberDescriptorType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from agm._module_state.kinds import CLASS, ITERATOR, KINDS, MODULE, OBJECT, Kind, Slots
from agm._module_state.modules import submodules

__all__ = ["OF_MODULES", "REGISTERED", "Held", "contents", "home_of", "is_generator", "is_iterator", "noted", "parts"]

_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), Tensor, nn.Parameter))
_LARGE = 100_000
REGISTERED = ("_parameters", "_buffers", "_modules")
# A function that somebody has put in the place of a forward watches what runs, and may go on with that (beside it is
# what copies the module without it). So does a backend of torch.compile, which Lightning keeps with other arguments.
OF_MODULES = frozenset((*vars(nn.Module()), "forward", "__deepcopy__", "_compile_kwargs"))
_LIBRARIES = frozenset(("torch", "numpy", "tensorboard", "wandb"))
# What of the standard library is like a user's own.
_QUEUES = (queue.Queue, queue.LifoQueue, queue.PriorityQueue)
_BAGS = (SimpleNamespace, Namespace, UserDict, UserList, ChainMap, *_QUEUES)


_known: dict[type, tuple[Kind, ...]] = {}


class Held:
    """A container, with what it has held.

    Attributes:
        content: a copy of what it held; the length alone, of a large one.
    """

    __slots__ = ("_kind", "_value", "content")

    def __init__(self, value: Any, kind: Kind, content: Any) -> None:
        self._value, self._kind, self.content = value, kind, content

    @property
    def value(self) -> Any:
        """The container itself."""
        return self._value

    @property
    def is_iterator(self) -> bool:
        return self._kind is ITERATOR

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


def contents(
    attributes: Iterable[dict[str, Any]], owners: Iterable[nn.Module], registered: Collection[nn.Module]
) -> tuple[list[Held], list[nn.Module]]:
    """Containers that attributes hold, and those inside them, each with a copy of what it contains.

    Generators of random numbers, arrays of NumPy, functions with variables around them, objects of the user's own (a
    meter, a cache) and the classes of the owners, which are taken for their attributes, are containers too. So are
    modules that no `parameters()` shows (a teacher in a list), but for those that have a registered one inside. Of a
    container that is too large to copy in every step only its length comes back, of a large array nothing.

    Args:
        attributes: of modules.
        owners: these modules. Objects of the packages that their classes are from are followed into one another, all
            others once.
        registered: the modules of the network.

    Returns:
        the containers, and the modules among them.
    """
    classes = {type(owner) for owner in owners}
    homes = frozenset([home_of(one) for one in classes])
    pending: list[tuple[Any, bool]] = []
    found: list[Held] = []
    hidden: list[nn.Module] = []
    for base in {base for one in classes for base in _own_bases(one)}:
        held = Held(base, CLASS, CLASS.take(base))
        found.append(held)
        pending += [(x, True) for x in held.content.values() if type(x) not in _PLAIN]
    for kept in attributes:
        pending += [(kept[name], False) for name in REGISTERED if kept.get(name)]
        pending += [(x, True) for name, x in kept.items() if type(x) not in _PLAIN and name not in OF_MODULES]
    seen: set[tuple[int, int]] = set()
    while pending:
        value, follows = pending.pop()
        for kind in _known.get(type(value)) or _all_kinds(type(value)):
            key = id(value), id(kind)
            if key in seen or (kind.is_object and not follows):
                continue
            seen.add(key)
            if kind is MODULE:
                if value in registered or home_of(type(value)) == "agm" or _has_one_of(registered, value):
                    continue
                hidden.append(value)
            sized = kind.is_sized and len(value) > _LARGE
            held = Held(value, kind, len(value) if sized else kind.take(value))
            if held.content is None:
                continue
            found.append(held)
            on = follows and (not kind.is_object or kind is MODULE or _follows(type(value), homes))
            pending += [(one, on) for one in held.inner() if type(one) not in _PLAIN]
    return found, hidden


def _has_one_of(registered: Collection[nn.Module], module: nn.Module) -> bool:
    return any(one in registered for one in submodules(module))


_bases: dict[type, tuple[type, ...]] = {}


def _own_bases(kind: type) -> tuple[type, ...]:
    """The class, and those that it is derived from, of the user's own."""
    if kind not in _bases:
        _bases[kind] = tuple([base for base in kind.__mro__ if _is_users(home_of(base))])
    return _bases[kind]


def _is_users(home: str) -> bool:
    return not (home in sys.stdlib_module_names or home in _LIBRARIES or home == "agm")


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object, a method or a function holds, by name."""
    for kind in _all_kinds(type(value)):
        content = kind.take(value)
        if isinstance(content, dict):
            yield from content.items()
        elif content is not None:
            yield from ((f"({place})", inner) for place, inner in enumerate(kind.inner(content)))


def _all_kinds(kind: type) -> tuple[Kind, ...]:
    if kind not in _known:
        _known[kind] = tuple(_kinds_of(kind))
    return _known[kind]


def is_iterator(kind: type) -> bool:
    """Whether it is an iterator of Python's own; one of a user's class is an object for its attributes."""
    return issubclass(kind, Iterator) and kind.__module__ in ("builtins", "itertools")


def is_generator(kind: type) -> bool:
    """Whether it is a generator of random numbers: torch's, NumPy's or Python's."""
    return any(known.draws for known in _all_kinds(kind))


def noted(value: Any) -> Held:
    """What can be put back to what it is now."""
    kind = _all_kinds(type(value))[0]
    return Held(value, kind, kind.take(value))


def home_of(kind: type) -> str:
    """The package that a class is from."""
    return kind.__module__.partition(".")[0]


def _follows(kind: type, homes: frozenset[str]) -> bool:
    """Whether objects inside of one of this class are looked at; what this package knows of a network is its own."""
    home = home_of(kind)
    return home in homes and home != "agm"


def _kinds_of(kind: type) -> Iterator[Kind]:
    if issubclass(kind, nn.Module):
        yield MODULE
        return
    if issubclass(kind, (Tensor, type)):
        return
    if is_iterator(kind):
        yield ITERATOR
        return
    home = home_of(kind)
    for base, known in KINDS:
        if issubclass(kind, base):
            if home != "torch" or kind is torch.Generator:
                yield known
            break
    stands_in = ("__call__", "__next__")  # for a forward or an iterator, and notes what it sees
    if home == "agm" and any(name in vars(base) for base in kind.__mro__ for name in stands_in):
        return
    if kind in _BAGS or not (home in sys.stdlib_module_names or home in _LIBRARIES):
        yield OBJECT
        slots = [x for base in kind.__mro__ for x in vars(base).values() if type(x) is MemberDescriptorType]
        if slots:
            yield Slots(slots)
