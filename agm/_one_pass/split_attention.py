"""Attention with dropout on train rows and eval rows as one batch: projected together, attending apart."""

import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation

__all__ = ["split_attention"]

_Sizes = Callable[[Tensor], Sequence[int]]


def split_attention(sizes: _Sizes) -> Callable[..., Any]:
    """A forward of `nn.MultiheadAttention` that drops out what the train rows attend to, and nothing of the eval rows.

    It is torch's own code with other functions under the names of those that draw random numbers, so it takes what
    that takes. Where torch should come to call others, eval rows are dropped out, which a first batch shows.

    Args:
        sizes: of a tensor the numbers of its train rows and of its eval rows, which follow them.

    Returns:
        a function of the layer, in training mode and with its samples in the first dimension, and its arguments.
    """
    names = {"scaled_dot_product_attention": partial(_attend, sizes), "dropout": partial(_drop, sizes)}
    attention = _rebound(F.multi_head_attention_forward, **names)
    functional = types.SimpleNamespace(**{**vars(F), "multi_head_attention_forward": attention})
    return _rebound(nn.MultiheadAttention.forward, **{_FUNCTIONAL: functional})


_FUNCTIONAL = next(name for name, value in vars(activation).items() if value is F)  # what torch calls it there


def _rebound(function: Any, **names: Any) -> Callable[..., Any]:
    """A function with other values for some of its global names."""
    rebound = types.FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound


def _attend(
    sizes: _Sizes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """`scaled_dot_product_attention` of (rows, heads, length, width)."""
    if not dropout:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, *args, **kwargs)
    cut = list(sizes(query))
    own = mask is not None and mask.dim() == query.dim() and mask.shape[0] == sum(cut)  # not one for all rows
    masks = mask.split(cut) if mask is not None and own else [mask, mask]
    parts = zip(query.split(cut), key.split(cut), value.split(cut), masks, (dropout, 0.0), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, *args, **kwargs) for part in parts])


def _drop(sizes: _Sizes, weights: Tensor, p: float) -> Tensor:
    """`dropout` of attention weights (rows * heads, length, length)."""
    train, rest = weights.split(list(sizes(weights)))
    return torch.cat([F.dropout(train, p), rest])
