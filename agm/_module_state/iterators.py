"""Iterators that attributes hold: while a pass runs copies stand in for them, since none can be wound back."""

import ast
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agm._module_state.containers import Held, is_iterator

__all__ = ["StandIns", "copy_of", "state_of"]


class StandIns:
    """Copies in the places where attributes, and the containers in them, hold iterators.

    Those that cannot be copied (generators) stay, and what is drawn from them is gone.

    Args:
        kept: of each module its attributes, and a copy of them.
        held: the containers among them.
        copied: makes what stands in, or returns None; None: `copy_of`.
    """

    def __init__(
        self,
        kept: Sequence[tuple[dict[str, Any], Mapping[str, Any]]],
        held: Sequence[Held],
        copied: Callable[[Iterator[Any]], Iterator[Any] | None] | None = None,
    ) -> None:
        own = [one.value for one in held if one.is_iterator]
        self._pairs = [(iterator, (copied or copy_of)(iterator)) for iterator in own]
        self._copies = {id(iterator): copy for iterator, copy in self._pairs if copy is not None}
        self._originals = {id(copy): iterator for iterator, copy in self._pairs if copy is not None}
        self._kept, self._held = kept, held

    def begin(self) -> None:
        """Puts the copies in."""
        if self._copies:
            self._exchange(self._copies)

    def put_back(self) -> None:
        """Puts the iterators themselves back."""
        if self._originals:
            self._exchange(self._originals)

    @property
    def are_all(self) -> bool:
        """Whether every iterator has a copy."""
        return all([copy is not None for _, copy in self._pairs])

    def have_moved(self) -> bool:
        """Whether something has been drawn from a copy."""
        return any([copy is not None and state_of(copy) != state_of(iterator) for iterator, copy in self._pairs])

    def _exchange(self, others: Mapping[int, Any]) -> None:
        for current, _ in self._kept:
            for name, value in [*current.items()]:
                if id(value) in others:
                    current[name] = others[id(value)]
        for one in self._held:
            one.exchange(others)


def copy_of(iterator: Iterator[Any]) -> Iterator[Any] | None:
    """Another one that goes on as this one does, over the same things; None: there is none."""
    try:
        if type(iterator) is itertools.count:
            return itertools.count(*_start_and_step(iterator))  # Python 3.14 reduces it no more
        make, arguments, state = _reduced(iterator)
        copy: Iterator[Any] = make(*map(_part, arguments))
        if state is not None:
            copy.__setstate__(_part(state, of_its_own=True))  # type: ignore[attr-defined]
        return copy
    except Exception:  # of whatever kind it is
        return None


def state_of(iterator: Iterator[Any]) -> object:
    """What is another one once something has been drawn; None, where that cannot be told."""
    try:
        if type(iterator) is itertools.count:
            return repr(iterator)
        make, arguments, state = _reduced(iterator)
        return _told((make, arguments, state or 0))  # an exhausted one has none, and its copy has 0
    except Exception:  # of whatever kind it is
        return None


def _start_and_step(count: "itertools.count[Any]") -> Any:
    inside = repr(count).removeprefix("count(").removesuffix(")")
    return ast.literal_eval(f"({inside},)")


def _reduced(iterator: Any) -> tuple[Any, Any, Any]:
    made = iterator.__reduce__()
    return made[0], made[1], made[2] if len(made) > 2 else None


def _part(value: Any, of_its_own: bool = False) -> Any:
    """What a copy is made of: iterators inside are copied, and so are the lists to which they write."""
    if is_iterator(type(value)):
        copy = copy_of(value)
        if copy is None:
            raise TypeError("an iterator in it cannot be copied")
        return copy
    if type(value) is tuple:
        return tuple([_part(one, of_its_own) for one in value])
    return value.copy() if of_its_own and type(value) is list else value


def _told(value: Any) -> object:
    if is_iterator(type(value)):
        return state_of(value)
    if type(value) is tuple:
        return tuple(map(_told, value))
    if isinstance(value, (bool, int, float, str)):
        return value
    return (type(value), len(value)) if isinstance(value, (list, range)) else id(value)
