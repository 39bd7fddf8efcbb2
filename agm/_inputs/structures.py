"""Reading and replacing what lies somewhere inside a structure: dicts, sequences, dataclasses, objects."""

import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor

__all__ = ["Path", "entries", "parse_path", "read", "replaced", "where"]

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
    held = getattr(value, "__dict__", None)
    return iter(list(held.items())) if held else None


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
    inner = replaced(_step(value, step), tuple(rest), new)
    if isinstance(value, tuple):
        items = [inner if index == step % len(value) else item for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    made = copy(value)
    if isinstance(made, (MutableMapping, list)):
        made[step] = inner
    else:
        try:
            setattr(made, step, inner)
        except dataclasses.FrozenInstanceError:
            object.__setattr__(made, step, inner)
    return made


def where(value: Any, leaf: Any, depth: int = 4) -> Path | None:
    """The path to an object inside a structure, found by identity; None if it is not there."""
    if value is leaf:
        return ()
    found = entries(value) if depth else None
    for key, inner in found or ():
        if (path := where(inner, leaf, depth - 1)) is not None:
            return (key, *path)
    return None
