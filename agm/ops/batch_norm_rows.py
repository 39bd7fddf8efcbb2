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
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        train_rows: int,
        momentum: float,
        eps: float,
        batches: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        op = select("batch_norm_rows", input.device, backend)
        output, updated_mean, updated_var, mean, invstd = op(
            input, running_mean, running_var, weight, bias, train_rows, momentum, eps, batches
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
            return (None,) * 10
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
            *(None,) * 5,
        )


def batch_norm_rows(
    input: Tensor,  # (N, C, ...)
    running_mean: Tensor | None,  # (C,)
    running_var: Tensor | None,  # (C,)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    train_rows: int,
    momentum: float | None,
    eps: float,
    *,
    batches: Tensor | None = None,  # () int64
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
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
        running_mean, running_var: the running statistics before the pass. None, both: there are none, and the others
            are normalised by statistics of their own, all of them together, as torch's norms do it in eval mode; their
            gradient then flows through these.
        weight, bias: of the affine map, of the dtype of the running statistics; None: 1 and 0.
        train_rows: rows in training mode, which come first; at least one.
        momentum: the share of this batch in the updated statistics, as `torch.nn.functional.batch_norm` takes it. None:
            the running statistics are averages of all batches, as those of `torch.nn.BatchNorm1d(momentum=None)` are.
        eps: added to the variance.
        batches: where `momentum` is None, how many batches came before this one: `num_batches_tracked` of the norm
            before it has counted. It stays on its device, so that nothing waits for it.
        backend: "auto", or the name of one in `agm.backends()`, which is then used or raises.

    Returns:
        the output, of the shape, dtype and memory format of the input; the updated mean and variance (C,), or None
        where there are none.

    Raises:
        TypeError: something is no tensor, or of a dtype that does not fit.
        ValueError: a shape, device or number that does not fit, or one value a channel in the train rows, or in the
            others without running statistics.
        RuntimeError: a backend asked for by name cannot serve here.
    """
    _check(input, running_mean, running_var, weight, bias, train_rows, momentum, eps, batches)
    share = 0.0 if momentum is None else momentum
    arguments = (input, running_mean, running_var, weight, bias, train_rows, share, eps, batches)
    learns = any(one is not None and one.requires_grad for one in (input, weight, bias))
    if learns and torch.is_grad_enabled():
        output, updated_mean, updated_var = _BatchNormRows.apply(*arguments, backend)
    else:
        output, updated_mean, updated_var, _, _ = select("batch_norm_rows", input.device, backend)(*arguments)
    return (output, None, None) if running_mean is None else (output, updated_mean, updated_var)


def _check(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    train_rows: int,
    momentum: float | None,
    eps: float,
    batches: Tensor | None,
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
    if mean is None and var is None and (rows - train_rows) * math.prod(input.shape[2:]) == 1:
        raise ValueError(
            "Expected more than 1 value per channel in the rows behind the train rows, but got rows of shape "
            f"{(rows - train_rows, *input.shape[1:])}. Without running statistics a variance of these is needed."
        )
    _check_momentum(input, mean, momentum, batches)
    if not (_checks.is_number(eps) and 0 <= eps < math.inf):
        raise ValueError(f"Expected argument `eps` to be a finite number >= 0, but got {eps!r}.")
    wide = accumulation_dtype(input.dtype)
    parts = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}
    leading = next((name for name, part in parts.items() if part is not None), "")
    for name, part in parts.items():
        if part is None and name.startswith("running") and (mean is not None or var is not None):
            raise TypeError(
                f"Expected argument `{name}` to be a tensor, but got None. Pass both running statistics, or neither."
            )
        if part is None:
            continue
        _checks.check_tensor(name, part, input.device, "`input` is")
        if part.shape != (channels,):
            raise ValueError(
                f"Expected argument `{name}` to have shape ({channels},), one number a channel, but got "
                f"{tuple(part.shape)}."
            )
        first = parts[leading]
        assert first is not None
        if part.dtype != first.dtype or part.dtype not in (input.dtype, wide):
            raise TypeError(
                f"Expected argument `{name}` to be {input.dtype}, as `input` is, or {wide}, and of one dtype with "
                f"`{leading}` ({first.dtype}), but got {part.dtype}. Convert it with .to(dtype)."
            )


def _check_momentum(input: Tensor, mean: Tensor | None, momentum: float | None, batches: Tensor | None) -> None:
    if momentum is not None and not (_checks.is_number(momentum) and -math.inf < momentum < math.inf):
        raise ValueError(f"Expected argument `momentum` to be a finite number or None, but got {momentum!r}.")
    averages = momentum is None and mean is not None
    if averages != (batches is not None):
        raise ValueError(
            "Expected argument `batches` to be given where `momentum` is None and there are running statistics, and "
            f"only there, but got {batches!r} with `momentum` {momentum!r}. Pass num_batches_tracked of the norm."
        )
    if batches is not None:
        _checks.check_tensor("batches", batches, input.device, "`input` is")
        if batches.shape != () or batches.dtype != torch.int64:
            raise ValueError(
                "Expected argument `batches` to be a whole number, () int64, but got "
                f"{tuple(batches.shape)} {batches.dtype}. Pass num_batches_tracked of the norm."
            )
