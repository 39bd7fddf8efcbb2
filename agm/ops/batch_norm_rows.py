"""Batch norm of a batch whose first rows are in training mode and whose others are in eval mode."""

import math
from typing import Any

import torch
from torch import Tensor

from agm.ops import _checks
from agm.ops._backends import select
from agm.ops._derivatives import once_differentiable
from agm.ops.reference import accumulation_dtype

__all__ = ["batch_norm_rows"]


class _BatchNormRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        train_rows: int,
        momentum: float,
        eps: float,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        op = select("batch_norm_rows", input.device, backend)
        output, updated_mean, updated_var, mean, invstd = op(
            input, running_mean, running_var, weight, bias, train_rows, momentum, eps
        )
        ctx.save_for_backward(input, weight, mean, invstd, updated_mean, updated_var)
        ctx.train_rows, ctx.eps, ctx.backend = train_rows, eps, backend
        ctx.mark_non_differentiable(updated_mean, updated_var)
        ctx.set_materialize_grads(False)
        return output, updated_mean, updated_var

    @staticmethod
    @once_differentiable(
        "batch_norm_rows",
        'For a gradient penalty in a network of agm.AGM, set passes="two"; elsewhere use '
        "torch.nn.functional.batch_norm, once for the train rows and once for the others.",
    )
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        input, weight, mean, invstd, updated_mean, updated_var = ctx.saved_tensors
        op = select("batch_norm_rows_backward", grad.device, ctx.backend)
        of_input, of_weight, of_bias = op(
            grad, input, weight, mean, invstd, updated_mean, updated_var, ctx.train_rows, ctx.eps
        )
        needed = ctx.needs_input_grad
        return (
            of_input if needed[0] else None,
            None,
            None,
            of_weight if needed[3] else None,
            of_bias if needed[4] else None,
            *(None,) * 4,
        )


def batch_norm_rows(
    input: Tensor,  # (N, C, ...)
    running_mean: Tensor,  # (C,)
    running_var: Tensor,  # (C,)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    train_rows: int,
    momentum: float,
    eps: float,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises the first rows as in training mode and the others as in eval mode, by the statistics just updated.

    One operation each way takes the place of two batch norms and a concatenation, with the same numbers. It writes to
    nothing: who calls it copies the updated statistics into the buffers, or leaves them::

        output, mean, var = batch_norm_rows(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, 8, 0.1, 1e-5)
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(var)

    Statistics are computed in float32 or better for every dtype. Gradients reach `input`, `weight` and `bias`, once;
    those of the last two are summed over all rows. The updated statistics carry none. `agm.ops.reference` says what is
    computed. Statistics that several processes share (`SyncBatchNorm`) are not exchanged.

    Args:
        input: floating, with samples along the first dimension and channels along the second.
        running_mean, running_var: the running statistics before the pass.
        weight, bias: of the affine map, of the dtype of the running statistics; None: 1 and 0.
        train_rows: rows in training mode, which come first; at least one.
        momentum: the share of this batch in the updated statistics, as `torch.nn.functional.batch_norm` takes it.
        eps: added to the variance.
        backend: "auto", or the name of one in `agm.backends()`, which is then used or raises.

    Returns:
        the output, of the shape, dtype and memory format of the input; the updated mean and variance (C,).

    Raises:
        TypeError: something is no tensor, or of a dtype that does not fit.
        ValueError: a shape, device or number that does not fit, or one value a channel in the train rows.
        RuntimeError: a backend asked for by name cannot serve here.
    """
    arguments = (input, running_mean, running_var, weight, bias, train_rows, momentum, eps)
    _check(*arguments)
    learns = any(one is not None and one.requires_grad for one in (input, weight, bias))
    if learns and torch.is_grad_enabled():
        result: tuple[Tensor, Tensor, Tensor] = _BatchNormRows.apply(*arguments, backend)
        return result
    output, updated_mean, updated_var, _, _ = select("batch_norm_rows", input.device, backend)(*arguments)
    return output, updated_mean, updated_var


def _check(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    train_rows: int,
    momentum: float,
    eps: float,
) -> None:
    _checks.check_tensor("input", input)
    _checks.check_floating("input", input)
    if input.dim() < 2:
        raise ValueError(
            f"Expected argument `input` to have shape (rows, channels, ...), but got {tuple(input.shape)}."
        )
    rows, channels = input.shape[:2]
    _checks.check_train_rows(train_rows)
    if not 1 <= train_rows <= rows:
        raise ValueError(
            f"Expected argument `train_rows` to be from 1 to the {rows} rows of `input`, but got {train_rows}. "
            "For eval rows alone use torch.nn.functional.batch_norm(..., training=False)."
        )
    if channels < 1 or train_rows * math.prod(input.shape[2:]) < 2:
        raise ValueError(
            "Expected more than 1 value per channel in the train rows, but got train rows of shape "
            f"{(train_rows, *input.shape[1:])}. A variance needs two: use a larger batch."
        )
    if not (_checks.is_number(momentum) and -math.inf < momentum < math.inf):
        raise ValueError(
            f"Expected argument `momentum` to be a finite number, but got {momentum!r}. For a cumulative average pass "
            "1 / (num_batches_tracked + 1), as torch.nn.BatchNorm1d does."
        )
    if not (_checks.is_number(eps) and 0 <= eps < math.inf):
        raise ValueError(f"Expected argument `eps` to be a finite number >= 0, but got {eps!r}.")
    wide = accumulation_dtype(input.dtype)
    parts = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}
    for name, part in parts.items():
        if part is None and name in ("weight", "bias"):
            continue
        if part is None:
            raise TypeError(
                f"Expected argument `{name}` to be a tensor, but got None. Without running statistics there is no "
                "eval mode to split off."
            )
        _checks.check_tensor(name, part, input.device, "`input` is")
        if part.shape != (channels,):
            raise ValueError(
                f"Expected argument `{name}` to have shape ({channels},), one number a channel, but got "
                f"{tuple(part.shape)}."
            )
        if part.dtype != mean.dtype or part.dtype not in (input.dtype, wide):
            raise TypeError(
                f"Expected argument `{name}` to be {input.dtype}, as `input` is, or {wide}, and of one dtype with "
                f"`running_mean` ({mean.dtype}), but got {part.dtype}. Convert it with .to(dtype)."
            )
