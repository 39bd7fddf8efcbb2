"""What rules have in common: which arguments have rows, and where these lie in a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agm._one_pass.layouts import Layout, Meeting, Mode, RowCount, Unsplit

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = [
    "Rule",
    "alike",
    "argument",
    "as_it_is",
    "dims_of",
    "first_of",
    "from_right",
    "meet",
    "name_of",
    "no_counts",
    "only_first",
    "pointwise",
    "put_together",
    "rows_first",
    "tensors_in",
    "with_numbers",
]

# Runs a function of torch on tensors of which at least one has rows, notes where the result has them, and raises
# `Unsplit` where rows would meet.
Rule = Callable[["RowSplit", Callable[..., Any], Sequence[Any], dict[str, Any]], Any]


def name_of(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))


def argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    """An argument that is given by position or by name."""
    if len(args) > place:
        return args[place]
    return kwargs.get(name, kwargs.get("axis", default) if name == "dim" else default)  # NumPy's name, as torch has it


def first_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, also those in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def dims_of(dim: Any, tensor: Tensor) -> list[int]:
    """Dimensions counted from the first, of an argument that may be one, several, or None for all."""
    if dim is None:
        return list(range(tensor.dim()))
    return [d % tensor.dim() for d in (dim if isinstance(dim, (list, tuple)) else (dim,))]


def put_together(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, with the elements in memory in the order that the first part has them: random numbers follow it."""
    first = parts[0]
    if first.is_contiguous() or 0 in first.stride():
        return torch.cat(list(parts), dim)
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    back = [order.index(d) for d in range(first.dim())]
    return torch.cat([part.permute(order) for part in parts], back[dim]).permute(back)


def meet(what: str) -> Meeting:
    return Meeting(f"{what}, where rows may meet")


def no_counts(name: str, values: Iterable[Any]) -> None:
    """That neither the number of rows nor the mode is among the arguments of a function that calculates.

    Raises:
        Unsplit: it is.
    """
    for value in values:
        if isinstance(value, (list, tuple)):
            no_counts(name, value)
        if type(value) is Mode:
            raise Unsplit("its code calculates with the mode")
        if type(value) is RowCount:
            raise Unsplit(f"it gives `{name}` the number of rows, which is another one in one pass")


def only_first(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Layout:
    """The layout of the first argument.

    Raises:
        Unsplit: another one has rows, or it has none.
    """
    first = first_of(args, kwargs)
    layout = split.of(first) if isinstance(first, Tensor) else None
    if layout is None:
        raise meet(f"it gives `{name_of(func)}` rows in the place of something else")
    if len(args) > 1 or kwargs:
        rest = (*args, *kwargs.values())[1:]
        if any(split.of(tensor) is not None for tensor in tensors_in(rest)):
            raise meet(f"it gives `{name_of(func)}` rows in the place of something else")
        no_counts(name_of(func), rest)
    return layout


def from_right(split: RowSplit, name: str, tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Where the rows of tensors that are broadcast lie, counted from the last dimension, and the blocks of rows.

    Raises:
        Unsplit: they lie in different places, or a tensor without rows is no constant to them.
    """
    found: tuple[int, int] | None = None
    size = 0
    others = []
    for tensor in tensors:
        layout = split.of(tensor)
        if layout is None:
            others.append(tensor)
            continue
        place = (tensor.dim() - layout.dim, layout.outer)
        if found not in (None, place) or size not in (0, tensor.shape[layout.dim]):
            raise meet(f"it gives `{name}` tensors whose rows lie in different places")
        found, size = place, tensor.shape[layout.dim]
    assert found is not None
    if any(other.dim() >= found[0] and other.shape[-found[0]] != 1 for other in others):
        raise meet(f"it gives `{name}` something of which nobody knows to which rows it belongs")
    return found


def pointwise(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Element by element, with broadcasting."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        layout = split.of(args[0])
        result = func(args[0])
        if layout is None or not isinstance(result, Tensor):
            raise meet(f"it gives `{name_of(func)}` nothing else")
        return split.note(result, layout)
    values = (*args, *kwargs.values())
    no_counts(name_of(func), values)
    right, outer = from_right(split, name_of(func), tensors_in(values))
    result = func(*args, **kwargs)
    return split.note(result, Layout(result.dim() - right, outer))


def alike(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A tensor whose rows lie where those of the first argument do, which alone has any."""
    layout = only_first(split, func, args, kwargs)
    return split.note(func(*args, **kwargs), layout)


def rows_first(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Row by row, of a tensor whose first dimension has the rows."""
    layout = only_first(split, func, args, kwargs)
    if layout.dim != 0:
        raise meet(f"it gives `{name_of(func)}` a tensor whose rows are not in the first dimension")
    return split.note(func(*args, **kwargs), layout)


def as_it_is(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _number(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_number, value))
    return value.number if type(value) is RowCount else value


def with_numbers(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes the number of rows as a size."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return func(*map(_number, args), **{key: _number(value) for key, value in kwargs.items()})

    call.__name__ = getattr(func, "__name__", str(func))
    return call
