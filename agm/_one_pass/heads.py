"""Torch's attention of several heads: all rows are projected together, train rows attend by themselves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agm._one_pass.attention import attend, attend_packed
from agm._one_pass.layouts import Layout, Unsplit
from agm._one_pass.rules import meet, put_together, tensors_in
from agm.ops.dropout_rows import dropout_rows

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = ["OF_HEADS", "heads"]

_PARAMETERS = inspect.signature(F.multi_head_attention_forward).parameters
OF_HEADS = tuple(_PARAMETERS)  # names of the arguments, in their order
_DEFAULTS = {name: one.default for name, one in _PARAMETERS.items() if one.default is not one.empty}


def heads(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The rule of `multi_head_attention_forward`, of (length, rows, width)."""
    given = {**_DEFAULTS, **dict(zip(OF_HEADS, args, strict=False)), **kwargs}
    query, key, value = given["query"], given["key"], given["value"]
    padding, mask = given["key_padding_mask"], given["attn_mask"]
    if any(one.dim() != 3 or split.of(one) != Layout(1) for one in (query, key, value)):
        raise meet("it attends across rows")
    if padding is not None and split.of(padding) != Layout(0):
        raise meet("it gives attention a padding mask of which nobody knows to which rows it belongs")
    if mask is not None and (split.of(mask) != Layout(0) if mask.dim() == 3 else split.of(mask) is not None):
        raise meet("it gives attention a mask of which nobody knows to which rows it belongs")
    known = [id(one) for one in (query, key, value, padding, mask) if one is not None]
    if any(split.of(one) is not None and id(one) not in known for one in tensors_in(given.values())):
        raise meet("it attends across rows")
    if not (given["dropout_p"] and given["training"] and split.acts()):
        output, weights = func(*args, **kwargs)
    elif given["add_zero_attn"] or any(given[name] is not None for name in _KEYS_OF_ITS_OWN):
        split.draws(query)
        output, weights = _apart(split, func, given)
    else:
        split.draws(query)
        output, weights = _attention(split, **{name: given[name] for name in _TAKEN})
    split.note(weights, Layout(0))
    return split.note(output, Layout(1)), weights


_KEYS_OF_ITS_OWN = ("bias_k", "bias_v", "static_k", "static_v")
_ROWS = {"query": 1, "key": 1, "value": 1, "key_padding_mask": 0, "attn_mask": 0}  # where rows are


def _apart(split: RowSplit, func: Callable[..., Any], given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Torch's function on each kind of rows, where it is given more than `_attention` takes."""
    parts: list[dict[str, Any]] = [dict(given), {**given, "training": False}]
    for name, dim in _ROWS.items():
        one = given[name]
        if one is not None and split.of(one) is not None:
            parts[0][name], parts[1][name] = one.split(split.sizes(one.shape[dim]), dim)
    (train, train_weights), (rest, rest_weights) = (func(**part) for part in parts)
    weights = None if train_weights is None else put_together([train_weights, rest_weights])
    return put_together([train, rest], 1), weights


_TAKEN = (
    *("query", "key", "value", "num_heads", "in_proj_weight", "in_proj_bias", "dropout_p", "out_proj_weight"),
    *("out_proj_bias", "key_padding_mask", "need_weights", "attn_mask", "use_separate_proj_weight", "q_proj_weight"),
    *("k_proj_weight", "v_proj_weight", "average_attn_weights", "is_causal"),
)


def _attention(
    split: RowSplit,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    use_separate_proj_weight: bool,
    q_proj_weight: Tensor | None,
    k_proj_weight: Tensor | None,
    v_proj_weight: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """What torch's function computes, step by step, but for the dropout."""
    length, rows, width = query.shape
    source, size = key.shape[0], width // num_heads
    if is_causal and attn_mask is None:
        raise Unsplit("it attends to what comes before without a mask")
    hint = is_causal and key_padding_mask is None and not need_weights
    mask = None if hint or attn_mask is None else _added(attn_mask, query)
    if mask is not None and mask.dim() == 2:
        mask = mask.unsqueeze(0)
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, query).view(rows, 1, 1, source)
        padding = padding.expand(-1, num_heads, -1, -1).reshape(rows * num_heads, 1, source)
        mask = padding if mask is None else mask + padding
    if mask is not None and not need_weights:
        mask = mask.unsqueeze(0) if mask.shape[0] == 1 else mask.view(rows, num_heads, -1, source)
    packed = None
    if query is key and key is value and in_proj_weight is not None and not use_separate_proj_weight:
        packed = F.linear(query, in_proj_weight, in_proj_bias)
    if packed is not None and not need_weights:
        attended = attend_packed(split, packed, num_heads, mask, dropout_p, is_causal=hint)
        return _out(attended, out_proj_weight, out_proj_bias), None
    if packed is not None:
        projected = packed.unflatten(-1, (3, width)).permute(2, 0, 1, 3).contiguous().unbind(0)
    elif use_separate_proj_weight:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        projected = F._in_projection(query, key, value, *weights, *biases)  # type: ignore[attr-defined]
    else:
        projected = F._in_projection_packed(query, key, value, in_proj_weight, in_proj_bias)  # type: ignore[attr-defined]
    q, k, v = (one.view(one.shape[0], rows * num_heads, size).transpose(0, 1) for one in projected)
    if not need_weights:
        q, k, v = (one.view(rows, num_heads, -1, size) for one in (q, k, v))
        return _out(attend(split, (q, k, v, mask), dropout_p, is_causal=hint), out_proj_weight, out_proj_bias), None
    scaled = q * math.sqrt(1.0 / float(size))
    scores = (
        torch.bmm(scaled, k.transpose(-2, -1)) if mask is None else torch.baddbmm(mask, scaled, k.transpose(-2, -1))
    )
    attention = dropout_rows(F.softmax(scores, dim=-1), dropout_p, split.sizes(scores.shape[0])[0])
    attended = torch.bmm(attention, v).view(rows, num_heads, length, size)
    attention = attention.view(rows, num_heads, length, source)
    output = _out(attended, out_proj_weight, out_proj_bias)
    return output, attention.mean(dim=1) if average_attn_weights else attention


def _out(attended: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The last product, of (rows, heads, length, width / heads): (length, rows, width)."""
    return F.linear(attended.permute(2, 0, 1, 3).flatten(2), weight, bias)


def _added(mask: Tensor, query: Tensor) -> Tensor:
    """A mask as numbers that are added to scores."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, float("-inf"))
