"""Rules of functions that depend on the mode: train rows go through them as in training, the others as in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agm._one_pass.attention import attend
from agm._one_pass.heads import heads
from agm._one_pass.layouts import Layout, Unsplit
from agm._one_pass.rules import Rule, argument, as_it_is, first_of, meet, name_of, put_together, rows_first, tensors_in
from agm._one_pass.synchronised import split_exchange
from agm.ops.batch_norm_rows import batch_norm_rows
from agm.ops.dropout_rows import dropout_rows

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = ["MODE_RULES", "TWICE"]


TWICE = "a norm of it is called twice, which in eval mode has the statistics of the last call"


_OF_NORM = ("input", "running_mean", "running_var", "weight", "bias")


def _check_norm(split: RowSplit, func: Callable[..., Any], given: dict[str, Any], plain: Callable[..., Any]) -> None:
    """That it is the function of `torch.nn.functional`, whose arguments come in that order, and has rows once.

    Raises:
        Unsplit: it is another one.
    """
    if func is not plain:
        raise meet(f"it calls `torch.{name_of(func)}`")
    if split.is_pending(given.get("running_mean")):
        raise Unsplit(TWICE)
    if any(split.of(given[key]) is not None for key in given if key != "input" and isinstance(given[key], Tensor)):
        raise meet(f"it gives `{name_of(func)}` rows in the place of something else")


def _batch_norm(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    given = _named((*_OF_NORM, "training", "momentum", "eps"), args, kwargs)
    mean, var = given.get("running_mean"), given.get("running_var")
    _check_norm(split, func, given, F.batch_norm)
    if not given.get("training"):
        return rows_first(split, func, args, kwargs)
    x = given["input"]
    train = split.train_size(x, name_of(func))
    if not split.acts():
        return rows_first(split, func, args, kwargs)
    if split.exchange is not None:
        return split_exchange(split, split.exchange, given, train)
    momentum = None if split.batches is not None else given.get("momentum", 0.1)
    affine, eps = (given.get("weight"), given.get("bias")), given.get("eps", 1e-5)
    # Without running statistics each kind of rows is a batch of its own, as in two passes.
    output, *updated = batch_norm_rows(x, mean, var, *affine, train, momentum, eps, batches=split.batches)
    if mean is not None and var is not None:
        split.write_later((mean, var), tensors_in(updated))
    return split.note(output, Layout(0))


def _instance_norm(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    given = _named((*_OF_NORM, "use_input_stats", "momentum", "eps"), args, kwargs)
    mean, var = given.get("running_mean"), given.get("running_var")
    _check_norm(split, func, given, F.instance_norm)
    if not given.get("use_input_stats", True) or mean is None or var is None:  # of each sample by itself
        return rows_first(split, func, args, kwargs)
    x = given.pop("input")
    train = split.train_size(x, name_of(func))
    if not split.acts():
        return rows_first(split, func, args, kwargs)
    first, rest = x.split((train, len(x) - train))  # not two slices, whose gradients would be added
    with torch.no_grad():
        updated = torch.stack((mean, var))
    first = func(first, **{**given, "running_mean": updated[0], "running_var": updated[1]})
    split.write_later((mean, var), updated.unbind())
    # By running statistics each channel is normalised as in batch norm, which repeats them for no sample.
    affine, eps = (given.get("weight"), given.get("bias")), given.get("eps", 1e-5)
    rest = F.batch_norm(rest, updated[0], updated[1], *affine, False, 0.0, eps)
    return split.note(put_together([first, rest]), Layout(0))


def _named(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _dropout(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Of train rows alone, drawn as for these by themselves."""
    name = name_of(func)
    x = first_of(args, kwargs)
    p = argument(args, kwargs, 1, "p", 0.5)
    training = argument(args, kwargs, 2, "training", kwargs.get("train", "alpha" not in name))
    layout = split.of(x)
    if layout is None:
        raise meet(f"it gives `{name}` rows in the place of something else")
    if not training or p == 0 or not split.acts():
        return split.note(func(*args, **kwargs), layout)
    if layout.outer != 1 or (layout.dim and not name.startswith("dropout")):
        raise meet(f"it gives `{name}` a tensor whose rows are not in the first dimension")
    train = split.train_rows * (x.shape[layout.dim] // split.rows)
    if not x.is_contiguous() and (train == 1 or 0 in x.stride()):
        raise Unsplit(f"it gives `{name}` elements whose order in memory may be another one in two passes")
    split.draws(x)
    in_place = name.endswith("_") or argument(args, kwargs, 3, "inplace", False)
    if in_place:
        func(x.narrow(layout.dim, 0, train), *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        return split.note(x, layout)
    if name == "dropout" and layout.dim == 0:
        return split.note(dropout_rows(x, p, train), layout)
    rest = x.narrow(layout.dim, train, x.shape[layout.dim] - train)
    own = {key: value for key, value in kwargs.items() if key != "input"}
    dropped = func(x.narrow(layout.dim, 0, train), *args[1:], **own)
    return split.note(put_together([dropped, rest], layout.dim), layout)


def _attention(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`scaled_dot_product_attention` of (rows, ..., length, width)."""
    given = _named((*_OF_ATTENTION, "is_causal"), args, kwargs)
    tensors = [given["query"], given["key"], given["value"], given.get("attn_mask")]
    places = {}
    for tensor in (one for one in tensors if one is not None):
        layout = split.of(tensor)
        if layout is not None:
            places[tensor.dim() - layout.dim, layout.outer] = layout
    if len(places) != 1:
        raise meet("it attends across rows")
    ((right, outer),) = places
    # A mask is broadcast; of its length and of that of a key alone no row may be made.
    if right < 3 or any(
        one is not None and split.of(one) is None and one.dim() >= right and one.shape[-right] != 1 for one in tensors
    ):
        raise meet("it attends across rows")
    dim = given["query"].dim() - right
    if not given.get("dropout_p") or not split.acts():
        result = func(*args, **kwargs)
        return split.note(result, Layout(result.dim() - right, outer))
    if outer != 1 or dim != 0 or split.of(given["query"]) is None:
        raise meet("it attends to rows that are not in the first dimension")
    split.draws(given["query"])
    options = {key: value for key, value in given.items() if key not in _OF_ATTENTION}
    return split.note(attend(split, tensors, given["dropout_p"], **options), Layout(0))


_OF_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p")


def _rrelu(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if argument(args, kwargs, 3, "training", False):
        raise Unsplit("it draws random slopes (rrelu)")
    return rows_first(split, func, args, kwargs)


MODE_RULES: tuple[tuple[str, Rule], ...] = (
    ("batch_norm", _batch_norm),
    ("instance_norm", _instance_norm),
    (
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout dropout_ "
        "alpha_dropout_",
        _dropout,
    ),
    ("scaled_dot_product_attention", _attention),
    ("multi_head_attention_forward", heads),
    ("rrelu", _rrelu),
    ("_set_grad_enabled", as_it_is),
)
