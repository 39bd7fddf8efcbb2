"""Reading and replacing what lies somewhere inside a structure: dicts, sequences, dataclasses, objects."""

import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor

__all__ = ["Path", "entries", "parse_path", "places", "read", "replaced", "replaced_everywhere", "with_entries"]

Path = tuple[Any, ...]
"""Keys, indices and attribute names, from the outside in."""


def parse_path(path: str | int | tuple[Any, ...]) -> Path:
    """The steps of a path: "batch.audio" is ("batch", "audio"), and numbers are indices."""
    if isinstance(path, tuple):
        return path
    if isinstance(path, int):
        return (path,)
    return tuple(int(step) if step.lstrip("-").isdigit() else step for step in path.split("."))


def entries(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """What a structure holds, by key, index or attribute; None for what is no structure."""
    if value is None or isinstance(value, (Tensor, str, bytes, bool, int, float, complex, type)) or callable(value):
        return None
    if isinstance(value, Mapping):
        return iter(list(value.items()))
    if isinstance(value, (list, tuple)):
        return iter(list(enumerate(value)))
    if dataclasses.is_dataclass(value):
        return iter([(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)])
    if callable(getattr(value, "to_dict", None)):  # a graph of torch_geometric
        return iter(list(value.to_dict().items()))
    held = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    held |= getattr(value, "__dict__", None) or {}
    return iter(list(held.items())) if held else None


def _slots(kind: type) -> list[str]:
    """Attributes of the objects of a user's class that are not in their `__dict__`."""
    found: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return [name for name in found if not name.startswith("__")]


def read(value: Any, path: Path) -> Any:
    """What is at a path.

    Raises:
        LookupError: nothing is.
    """
    for step in path:
        value = _step(value, step)
    return value


def _step(value: Any, step: Any) -> Any:
    if isinstance(value, (Mapping, list, tuple)) or not isinstance(step, str):
        try:
            return value[step]
        except (KeyError, IndexError, TypeError) as error:
            if not isinstance(step, str) or not hasattr(value, step):
                raise LookupError(step) from error
    if not hasattr(value, step):
        try:
            return value[step]
        except Exception as error:
            raise LookupError(step) from error
    return getattr(value, step)


def replaced(value: Any, path: Path, new: Any) -> Any:
    """A copy of a structure, of the same type, with something else at a path; what lies beside it is shared."""
    if not path:
        return new
    step, *rest = path
    return with_entries(value, {step: replaced(_step(value, step), tuple(rest), new)})


def with_entries(value: Any, changed: Mapping[Any, Any]) -> Any:
    """A copy of a structure, of the same type, with something else at some of its keys, indices or attributes."""
    if isinstance(value, tuple):
        inner = {step % len(value): item for step, item in changed.items()}
        items = [inner.get(index, item) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    made = copy(value)
    for step, item in changed.items():
        if isinstance(made, (MutableMapping, list)):
            made[step] = item
        else:
            try:
                setattr(made, step, item)
            except dataclasses.FrozenInstanceError:
                object.__setattr__(made, step, item)
    return made


def places(value: Any, leaf: Any, depth: int = 4) -> Iterator[Path]:
    """The paths to an object inside a structure, found by identity."""
    if value is leaf:
        yield ()
        return
    found = entries(value) if depth else None
    for key, inner in found or ():
        for path in places(inner, leaf, depth - 1):
            yield (key, *path)


def replaced_everywhere(value: Any, leaf: Any, new: Any) -> Any:
    """A copy of a structure with something else wherever it holds an object; None if it holds it nowhere."""
    found = list(places(value, leaf))
    for path in found:
        value = replaced(value, path, new)
    return value if found else None
