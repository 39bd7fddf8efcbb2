"""Dropout of a batch whose first rows are in training mode and whose others are in eval mode."""

from typing import Any

import torch
from torch import Tensor

from agm.ops import _checks
from agm.ops._backends import select
from agm.ops._derivatives import once_differentiable

__all__ = ["dropout_rows"]


class _DropoutRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float, train_rows: int, backend: str) -> Tensor:
        output, mask = select("dropout_rows", input.device, backend)(input, p, train_rows)
        ctx.save_for_backward(mask)
        ctx.p, ctx.backend = p, backend
        kept: Tensor = output
        return kept

    @staticmethod
    @once_differentiable(
        "dropout_rows",
        'For a gradient penalty in a network of agm.AGM, set passes="two"; elsewhere use '
        "torch.nn.functional.dropout of the train rows.",
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        return select("dropout_rows_backward", grad.device, ctx.backend)(grad, mask, ctx.p), None, None, None


def dropout_rows(input: Tensor, p: float, train_rows: int, *, backend: str = "auto") -> Tensor:
    """Drops out elements of the first rows, and leaves the others as they are.

    One operation each way. The mask is what `torch.nn.functional.dropout` draws for the first rows by themselves, bit
    for bit, and the generator advances as it does there::

        hidden = dropout_rows(hidden, 0.5, train_rows=8)

    Args:
        input: (N, ...), floating.
        p: the probability that an element is dropped, in [0, 1]; the rest is scaled by 1 / (1 - p).
        train_rows: rows in training mode, which come first.
        backend: "auto", or the name of one in `agm.backends()`, which is then used or raises.

    Returns:
        a tensor of the shape and dtype of the input, which is the input itself where nothing can be dropped. Its
        gradient cannot be differentiated again.

    Raises:
        TypeError: `input` is no floating tensor, or `train_rows` no integer.
        ValueError: `p` is no probability, or `train_rows` is not from 0 to N.
        RuntimeError: a backend asked for by name cannot serve here.
    """
    _checks.check_tensor("input", input)
    _checks.check_floating("input", input)
    if not (_checks.is_number(p) and 0 <= p <= 1):
        raise ValueError(f"Expected argument `p` to be a probability in [0, 1], but got {p!r}.")
    _checks.check_train_rows(train_rows)
    rows = input.shape[0] if input.dim() else 0
    if not 0 <= train_rows <= rows:
        raise ValueError(f"Expected argument `train_rows` to be from 0 to the {rows} rows, but got {train_rows}.")
    if p == 0 or train_rows == 0:
        return input
    if input.requires_grad and torch.is_grad_enabled():
        result: Tensor = _DropoutRows.apply(input, p, train_rows, backend)
        return result
    output: Tensor = select("dropout_rows", input.device, backend)(input, p, train_rows)[0]
    return output
