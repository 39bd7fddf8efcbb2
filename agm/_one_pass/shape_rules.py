"""Rules of functions that move elements: shapes, dimensions, pieces, indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from agm._one_pass.layouts import Layout, RowCount, Unsplit, reshaped
from agm._one_pass.rules import (
    Rule,
    argument,
    as_it_is,
    dims_of,
    first_of,
    from_right,
    meet,
    name_of,
    no_counts,
    only_first,
    tensors_in,
)

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = ["SHAPE_RULES"]


def _cast(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`x.to(...)`, where another tensor gives no more than its type."""
    layout = split.of(args[0])
    result = func(*args, **kwargs)
    return result if layout is None or not isinstance(result, Tensor) else split.note(result, layout)


def _laid_out(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The elements in their order, in another shape."""
    x = first_of(args, kwargs)
    layout = split.of(x)
    if layout is None or any(split.of(t) is not None and t is not x for t in tensors_in((*args, *kwargs.values()))):
        raise meet(f"it gives `{name_of(func)}` rows in the place of something else")
    result = func(*args, **kwargs)
    if result.dtype != x.dtype:
        raise meet("it reads the memory of a tensor as another type")
    after = reshaped(x.shape, layout, result.shape, split.rows)
    name = name_of(func)
    if name in ("view", "reshape", "unflatten"):
        first = 0
        if name == "unflatten":
            first = argument(args, kwargs, 1, "dim") % x.dim()
            sizes = argument(args, kwargs, 2, "sizes")
        else:
            sizes = args[1:] or (kwargs.get("size", kwargs.get("shape")),)
            sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else sizes
        _check_sizes(split, name, sizes, after.dim - first)
    return split.note(result, after)


def _check_sizes(split: RowSplit, name: str, sizes: Sequence[Any], place: int) -> None:
    """That the sizes of a new shape are those of so many rows where these are, and nowhere else.

    A number that has been read (by `len`) is told apart from one that stands in the code by other numbers of rows.

    Raises:
        Unsplit: they are others.
    """
    for d, size in enumerate(sizes):
        if type(size) is RowCount:
            fits = d == place
        else:
            fits = d != place or size == -1 or split.records
        if not fits:
            raise meet(f"it gives `{name}` a number of rows of its own")
        if type(size) is int and d == place and size != -1:
            split.record((name, size / split.rows))


def _like(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`view_as`, `reshape_as` and `expand_as`: the second argument gives the shape alone."""
    x, other = args[:2]
    layout, shown = split.of(x), split.of(other)
    result = func(*args, **kwargs)
    if name_of(func) != "expand_as":
        if layout is None or shown is None:
            raise meet(f"it gives `{name_of(func)}` rows in the place of something else")
        after = reshaped(x.shape, layout, result.shape, split.rows)
        if after != shown:
            raise meet(f"it gives `{name_of(func)}` tensors whose rows lie in different places")
        return split.note(result, after)
    places = {(tensor.dim() - at.dim, at.outer) for tensor, at in ((x, layout), (other, shown)) if at is not None}
    if len(places) != 1 or shown is None:
        raise meet("it expands a tensor to another whose rows lie in a different place")
    ((right, outer),) = places
    return split.note(result, Layout(result.dim() - right, outer))


def _expand(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`expand` and `repeat`: of a tensor with rows in other dimensions, of another one to all rows."""
    x = args[0]
    sizes = args[1:] or next(iter(kwargs.values()))
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else sizes
    layout, counted = split.of(x), _counted(sizes)
    result = func(*args, **kwargs)
    if layout is None:
        if len(counted) != 1 or (counted[0] >= len(sizes) - x.dim() and x.shape[counted[0] - len(sizes)] != 1):
            raise Unsplit(f"it gives `{name_of(func)}` the number of rows in a way of its own")
        return split.note(result, Layout(result.dim() - len(sizes) + counted[0]))
    dim = result.dim() - x.dim() + layout.dim
    if name_of(func) in ("repeat", "tile"):
        of_rows = dim - result.dim() + len(sizes)
        if counted or (of_rows >= 0 and sizes[of_rows] != 1):
            raise meet("it repeats rows")
    elif counted != [dim] and (counted or sizes[dim] != -1):
        raise Unsplit("it expands a tensor with rows to the number of rows")
    return split.note(result, layout._replace(dim=dim))


def _counted(sizes: Iterable[Any]) -> list[int]:
    return [d for d, size in enumerate(sizes) if type(size) is RowCount]


def _made(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A constant for every row: `torch.zeros(x.shape[0], 3)`."""
    rest = args[1:] if args and isinstance(args[0], Tensor) else args
    listed = bool(rest) and isinstance(rest[0], (list, tuple))
    sizes = kwargs.get("size", rest[0] if listed else rest)
    counted = _counted(sizes)
    filled = kwargs.get("fill_value", rest[1] if listed and len(rest) > 1 else None)
    if isinstance(filled, Tensor) or type(filled) is RowCount or len(counted) > 1:
        raise Unsplit(f"it gives `{name_of(func)}` the number of rows in a way of its own")
    result = func(*args, **kwargs)
    return split.note(result, Layout(counted[0])) if counted else split.fresh(result)


def _moved(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Dimensions in another order: found out on a tensor without memory, whose sizes name its dimensions."""
    x = first_of(args, kwargs)
    layout = only_first(split, func, args, kwargs)
    named = x.new_empty((1,)).as_strided([d + 2 for d in range(x.dim())], [0] * x.dim())
    moved = func(named, *args[1:], **kwargs) if args else func(**{**kwargs, next(iter(kwargs)): named})
    return split.note(func(*args, **kwargs), layout._replace(dim=list(moved.shape).index(layout.dim + 2)))


def _transposed(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if len(args) != 3:
        return _moved(split, func, args, kwargs)
    layout = only_first(split, func, args, kwargs)
    one, other = (d % args[0].dim() for d in args[1:])
    dim = other if layout.dim == one else one if layout.dim == other else layout.dim
    return split.note(func(*args), layout._replace(dim=dim))


def _squeeze(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x = first_of(args, kwargs)
    layout = only_first(split, func, args, kwargs)
    dims = dims_of(argument(args, kwargs, 1, "dim"), x)
    if layout.dim in dims and 1 in split.sizes(x.shape[layout.dim]):
        raise Unsplit("it drops the dimension of the rows where there is one alone")
    gone = sum(x.shape[d] == 1 and d < layout.dim for d in dims)
    return split.note(func(*args, **kwargs), layout._replace(dim=layout.dim - gone))


def _unsqueeze(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x = first_of(args, kwargs)
    layout = only_first(split, func, args, kwargs)
    before = argument(args, kwargs, 1, "dim") % (x.dim() + 1) <= layout.dim
    return split.note(func(*args, **kwargs), layout._replace(dim=layout.dim + before))


def _pieces(place: int, *, drops: bool = False, name: str = "dim") -> Rule:
    """Parts along another dimension than that of the rows; `drops` the dimension or leaves it."""

    def rule(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        layout = only_first(split, func, args, kwargs)
        x = first_of(args, kwargs)
        (dim,) = dims_of(argument(args, kwargs, place, name, 0), x)
        if dim == layout.dim:
            raise meet(f"it takes rows apart with `{name_of(func)}`")
        return split.note(func(*args, **kwargs), layout._replace(dim=layout.dim - (drops and dim < layout.dim)))

    return rule


def _join(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`cat` and `stack` along another dimension than that of the rows."""
    tensors = first_of(args, kwargs)
    layouts = [split.of(one) for one in tensors]
    layout = layouts[0]
    if layout is None or any(one != layout for one in layouts):
        raise meet(f"it gives `{name_of(func)}` tensors whose rows lie in different places")
    rank, stacks = tensors[0].dim(), name_of(func) == "stack"
    dim = argument(args, kwargs, 1, "dim", 0) % (rank + stacks)
    if dim == layout.dim and not stacks:
        raise meet("it puts one batch of rows behind another")
    return split.note(func(*args, **kwargs), layout._replace(dim=layout.dim + (stacks and dim <= layout.dim)))


def _indexed(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`x[...]` that takes every row whole, and a table without rows that is looked up row by row."""
    x, index = args
    layout = split.of(x)
    if layout is None:
        shown = split.of(index) if isinstance(index, Tensor) else None
        if shown is None or not _are_numbers(index):
            raise meet("it picks elements by their values")
        return split.note(func(x, index), shown)
    return split.note(func(x, index), _after_index(split, x, layout, index))


def _are_numbers(index: Tensor) -> bool:
    """Whether elements are picked by their places, not by a mask."""
    return not index.is_floating_point() and index.dtype.itemsize > 1


def _after_index(split: RowSplit, x: Tensor, layout: Layout, index: Any) -> Layout:
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(type(entry) is RowCount for entry in entries):
        raise meet("it picks a row by its number")
    taken = sum(1 for entry in entries if entry is not None and entry is not Ellipsis)
    whole = [slice(None)] * (x.dim() - taken)
    places = [i for i, entry in enumerate(entries) if entry is Ellipsis]
    entries = [*entries[: places[0]], *whole, *entries[places[0] + 1 :]] if places else [*entries, *whole]
    dim = new = listed = numbered = 0
    found = None
    for entry in entries:
        if entry is None:
            new += 1
            continue
        if dim == layout.dim:
            if not isinstance(entry, slice) or entry != slice(None):
                raise meet("it picks rows")
            found = new
        dim += 1
        if isinstance(entry, slice):
            no_counts("slice", (entry.start, entry.stop, entry.step))
            new += 1
        elif isinstance(entry, Tensor) and split.of(entry) is None and _are_numbers(entry):
            listed, new = listed + 1, new + entry.dim()
        elif isinstance(entry, int) and not isinstance(entry, bool):
            numbered += 1
        else:
            raise meet("it picks elements by their values")
    if listed > 1 or (listed and numbered):
        raise meet("it picks elements by their places in several dimensions")
    assert found is not None
    return layout._replace(dim=found)


def _written_into(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`x[...] = value`, in every row."""
    x, index, value = args
    layout = split.of(x)
    entries = index if isinstance(index, tuple) else (index,)
    if layout is None or any(isinstance(entry, (Tensor, list)) for entry in entries):
        raise meet("it writes into elements that are picked by their values")
    place = x[index]
    split.note(place, _after_index(split, x, layout, index))
    if isinstance(value, Tensor):
        from_right(split, "__setitem__", (place, value))
    no_counts("__setitem__", (value,))
    return func(x, index, value)


def _gather(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x, dim = args[0], argument(args, kwargs, 1, "dim")
    layout = split.of(x)
    if not isinstance(dim, int) or layout is None or layout.dim == dim % x.dim():
        raise meet("it gathers elements across rows")
    index = argument(args, kwargs, 2, "index")
    if layout != split.of(index) or x.shape[layout.dim] != index.shape[layout.dim]:
        raise meet("it gathers elements across rows")
    return split.note(func(*args, **kwargs), layout)


def _pad(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    layout = only_first(split, func, args, kwargs)
    if layout.dim >= first_of(args, kwargs).dim() - len(argument(args, kwargs, 1, "pad")) // 2:
        raise meet("it pads the dimension of the rows")
    return split.note(func(*args, **kwargs), layout)


def _flip(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    layout = only_first(split, func, args, kwargs)
    dims = kwargs.get("dims", args[1:])
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims
    if layout.dim in dims_of(list(dims), first_of(args, kwargs)):
        raise meet("it puts rows in another order")
    return split.note(func(*args, **kwargs), layout)


def _repeated(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`repeat_interleave`, where what is repeated stays with its row."""
    layout = only_first(split, func, args, kwargs)
    times = argument(args, kwargs, 1, "repeats")
    if not isinstance(times, int) or argument(args, kwargs, 2, "dim") is None:
        raise meet("it repeats elements by their values, or all of them")
    return split.note(func(*args, **kwargs), layout)


def _sizes(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`x.shape` and `x.size()`, in which the number of rows is told apart from other sizes."""
    result = func(*args, **kwargs)
    layout = split.of(args[0])
    assert layout is not None
    if isinstance(result, int):
        return RowCount(result) if argument(args, kwargs, 1, "dim") % args[0].dim() == layout.dim else result
    sizes = list(result)
    sizes[layout.dim] = RowCount(sizes[layout.dim])
    return type(result)(sizes)


def _number(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return RowCount(func(*args, **kwargs))


SHAPE_RULES: tuple[tuple[str, Rule], ...] = (
    ("to type type_as float double half bfloat16 int long short bool byte char cpu cuda get.data", _cast),
    ("view reshape flatten unflatten ravel", _laid_out),
    ("view_as reshape_as expand_as", _like),
    ("expand repeat tile", _expand),
    ("zeros ones full new_zeros new_ones new_full", _made),
    ("transpose swapaxes swapdims", _transposed),
    ("permute movedim moveaxis t get.T get.mT get.H get.mH adjoint", _moved),
    ("squeeze", _squeeze),
    ("unsqueeze", _unsqueeze),
    ("chunk split split_with_sizes tensor_split", _pieces(2)),
    ("narrow index_select", _pieces(1)),
    ("Tensor.unfold", _pieces(1, name="dimension")),
    ("unbind select", _pieces(1, drops=True)),
    ("cat concat concatenate stack", _join),
    ("__getitem__", _indexed),
    ("__setitem__", _written_into),
    ("gather", _gather),
    ("repeat_interleave", _repeated),
    ("pad", _pad),
    ("flip", _flip),
    ("size get.shape", _sizes),
    ("numel nelement", _number),
    (
        "dim get.ndim get.dtype get.device get.layout get.requires_grad get.is_cuda get.is_cpu get.is_meta get.is_mps "
        "get.is_sparse get.is_sparse_csr get.is_nested get.is_quantized get.names get.itemsize "
        "get.is_xpu get.is_mkldnn is_floating_point is_complex is_contiguous "
        "is_inference element_size get_device is_signed __hash__ __len__ is_conj is_neg has_names",
        as_it_is,
    ),
)
