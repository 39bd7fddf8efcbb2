"""`scaled_dot_product_attention` of train rows and of the others: two calls of torch's kernel, and no copy more.

Torch's kernels draw their dropout inside, so the train rows go by themselves. What is cut for that, and what is put
together again, is written by one operation each, in the layout in which the next one reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agm.ops._derivatives import once_differentiable

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = ["attend", "attend_packed"]


def _empty(like: Tensor) -> Callable[[], Tensor]:
    """Makes tensors of the same shape, whose dimensions lie in memory in the same order."""
    shape, strides, dtype, device = like.shape, like.stride(), like.dtype, like.device
    order = list(range(len(shape)))
    if 0 not in strides:
        order.sort(key=strides.__getitem__, reverse=True)

    def make() -> Tensor:
        made = torch.empty([shape[dim] for dim in order], dtype=dtype, device=device)
        return made.permute([order.index(dim) for dim in range(len(shape))])

    return make


def _as_it_is(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def _of_projection(projected: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value (rows, heads, length, size) of what one product made (length, rows, 3, heads, size)."""
    return projected.permute(2, 1, 3, 0, 4).unbind(0)


class _Parted(torch.autograd.Function):
    """Of every tensor, or of what `views` finds in it, the train rows and the others."""

    @staticmethod
    def forward(
        ctx: Any, train: int, views: Callable[[Tensor], tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.views = views
        ctx.empty = [_empty(tensor) for tensor in tensors]
        found = [view for tensor in tensors for view in views(tensor)]
        return tuple(part for view in found for part in (view[:train], view[train:]))

    @staticmethod
    @once_differentiable(
        "scaled_dot_product_attention", 'For a gradient penalty in a network of agm.AGM, set passes="two".'
    )
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made = [empty() if needed else None for empty, needed in zip(ctx.empty, ctx.needs_input_grad[2:], strict=True)]
        every = len(grads) // len(made)  # parts of each
        for i, tensor in enumerate(made):
            parts = grads[i * every : (i + 1) * every]
            views = () if tensor is None else ctx.views(tensor)
            for view, first, rest in zip(views, parts[::2], parts[1::2], strict=tensor is not None):
                torch.cat([first, rest], out=view)
        return None, None, *made


class _Joined(torch.autograd.Function):
    """Train rows and the others in one tensor, whose dimensions lie in memory in a given order."""

    @staticmethod
    def forward(ctx: Any, order: Sequence[int], train: Tensor, rest: Tensor) -> Tensor:
        ctx.train = len(train)
        shape = (len(train) + len(rest), *train.shape[1:])
        made = train.new_empty([shape[dim] for dim in order])
        joined = made.permute([order.index(dim) for dim in range(len(order))])
        return torch.cat([train, rest], out=joined)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, grad[: ctx.train], grad[ctx.train :]


def attend(split: RowSplit, tensors: Sequence[Tensor | None], dropout_p: float, **options: Any) -> Tensor:
    """`scaled_dot_product_attention` of query, key, value and mask (rows, heads, length, width), with a dropout."""
    query = tensors[0]
    assert query is not None
    train, rest = split.sizes(query.shape[0])

    def has_rows(one: Tensor | None) -> bool:
        return one is not None and one.dim() == query.dim() and one.shape[0] == train + rest

    with_rows = [one for one in tensors[:3] if one is not None and has_rows(one)]
    cut = iter(_Parted.apply(train, _as_it_is, *with_rows))
    parted = [(next(cut), next(cut)) if has_rows(one) else (one, one) for one in tensors[:3]]
    order = (0, 2, 1, 3) if query.dim() == 4 else range(query.dim())
    return _attend(parted, _parted_mask(tensors[3], has_rows(tensors[3]), train), dropout_p, order, options)


def attend_packed(
    split: RowSplit, projected: Tensor, heads: int, mask: Tensor | None, dropout_p: float, **options: Any
) -> Tensor:
    """The same of what one product made of the inputs (length, rows, 3 * width).

    Returns:
        (rows, heads, length, width / heads), which lies in memory as (length, rows, width).
    """
    length, rows, width = projected.shape
    train, _ = split.sizes(rows)
    parts = _Parted.apply(train, _of_projection, projected.view(length, rows, 3, heads, width // (3 * heads)))
    has_rows = mask is not None and mask.dim() == 4 and mask.shape[0] == rows
    parted = list(zip(parts[::2], parts[1::2], strict=True))
    return _attend(parted, _parted_mask(mask, has_rows, train), dropout_p, (2, 0, 1, 3), options)


def _parted_mask(mask: Tensor | None, has_rows: bool, train: int) -> tuple[Tensor | None, Tensor | None]:
    return (mask[:train], mask[train:]) if mask is not None and has_rows else (mask, mask)


def _attend(
    parted: Sequence[tuple[Tensor | None, Tensor | None]],
    masks: tuple[Tensor | None, Tensor | None],
    dropout_p: float,
    order: Sequence[int],
    options: dict[str, Any],
) -> Tensor:
    train, rest = (
        F.scaled_dot_product_attention(*part, **options) for part in zip(*parted, masks, (dropout_p, 0.0), strict=True)
    )
    joined: Tensor = _Joined.apply(order, train, rest)
    return joined
