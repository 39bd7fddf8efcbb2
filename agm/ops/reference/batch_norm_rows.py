"""Batch norm of train rows and eval rows in one batch: what two passes of torch compute, the train rows first."""

import torch
from torch import Tensor

from agm.ops.reference.modulate import accumulation_dtype

__all__ = ["batch_norm_rows", "batch_norm_rows_backward", "memory_format"]


def memory_format(input: Tensor) -> torch.memory_format:
    """The memory format of the result, chosen as torch's batch norm does: channels last where the input has it."""
    if not input.is_contiguous():
        for dim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if input.dim() == dim and input.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format


def batch_norm_rows(
    input: Tensor,  # (N, C, ...)
    running_mean: Tensor | None,  # (C,)
    running_var: Tensor | None,  # (C,)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    train_rows: int,
    momentum: float,
    eps: float,
    batches: Tensor | None = None,  # () int64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows [:train_rows] are normalised by their own statistics, the others by the updated running ones.

    Nothing is written: the updated statistics, `(1 - momentum) running + momentum batch` with the unbiased variance,
    are results (Ioffe and Szegedy, "Batch Normalization", 2015, as torch computes it). Where the `batches` before this
    one are given, they are averages of all batches, and `momentum` is `1 / (batches + 1)`. Without running statistics
    the others are normalised by statistics of their own, as torch does it in eval mode.

    Returns:
        the output, of the input's shape and dtype; the updated mean and variance (C,) of the running ones' dtype; and
        the mean (C,) and `1 / sqrt(variance + eps)` (C,) of the train rows, of the accumulation type. Without running
        statistics the updated ones are (0,), and the last two (2, C): of the train rows and of the others.
    """
    if running_mean is None or running_var is None:
        return _by_own_statistics(input, weight, bias, train_rows, eps)
    train, rest = input[:train_rows], input[train_rows:]
    if batches is not None and not input.is_cuda:
        momentum = 1.0 / (float(batches) + 1.0)
    by_hand = batches is not None and input.is_cuda  # a device would have to be waited for
    normalised, mean, invstd, updated_mean, updated_var = torch.ops.aten._native_batch_norm_legit_functional(
        train, weight, bias, running_mean, running_var, True, 1.0 if by_hand else momentum, eps
    )
    if by_hand:
        assert batches is not None
        share = 1.0 / (batches.double() + 1.0)
        updated_mean = running_mean.double().lerp(updated_mean.double(), share).to(running_mean.dtype)
        updated_var = running_var.double().lerp(updated_var.double(), share).to(running_var.dtype)
    if len(rest) > 0:
        evaluated = torch.native_batch_norm(rest, weight, bias, updated_mean, updated_var, False, momentum, eps)[0]
        normalised = torch.cat([normalised, evaluated])
    wide = accumulation_dtype(input.dtype)
    output = normalised.contiguous(memory_format=memory_format(input))
    return output, updated_mean, updated_var, mean.to(wide), invstd.to(wide)


def _by_own_statistics(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, train_rows: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(input.dtype)
    parts = [
        torch.native_batch_norm(rows, weight, bias, None, None, True, 0.0, eps)
        for rows in (input[:train_rows], input[train_rows:])
        if len(rows) > 0
    ]
    output = torch.cat([part[0] for part in parts]).contiguous(memory_format=memory_format(input))
    mean, invstd = (torch.stack([parts[0][at], parts[-1][at]]).to(wide) for at in (1, 2))
    return output, input.new_empty(0, dtype=wide), input.new_empty(0, dtype=wide), mean, invstd


def batch_norm_rows_backward(
    grad: Tensor,  # (N, C, ...)
    input: Tensor,  # (N, C, ...)
    weight: Tensor | None,  # (C,)
    mean: Tensor,  # (C,) of the train rows, or (2, C)
    invstd: Tensor,  # (C,) of the train rows, or (2, C)
    updated_mean: Tensor,  # (C,), or (0,)
    updated_var: Tensor,  # (C,), or (0,)
    train_rows: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input, and of weight and bias (C,), each summed over train rows and eval rows.

    No gradient flows through the updated statistics, as none does through running ones. Where there are none, it flows
    through the statistics of the others as through those of the train rows.
    """
    if input.device.type == "cpu":  # there torch keeps what it saves in the dtype of the parameters
        own = updated_mean.dtype if len(updated_mean) else input.dtype if weight is None else weight.dtype
        mean, invstd = mean.to(own), invstd.to(own)
    grads: list[Tensor] = []
    sums: list[Tensor] = []
    cuts = (slice(None, train_rows), slice(train_rows, None))
    kinds: tuple[tuple[Tensor | None, ...], ...] = ((None, None, mean, invstd), (updated_mean, updated_var, None, None))
    if not len(updated_mean):
        kinds = ((None, None, mean[0], invstd[0]), (None, None, mean[1], invstd[1]))
    for rows, (*running, own_mean, own_invstd) in zip(cuts, kinds, strict=True):
        if len(input[rows]) == 0:
            continue
        training = running[0] is None
        of_input, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad[rows], input[rows], weight, *running, own_mean, own_invstd, training, eps, [True, True, True]
        )
        grads.append(of_input)
        sums = [of_weight, of_bias] if not sums else [sums[0] + of_weight, sums[1] + of_bias]
    of_weight, of_bias = (one.to(updated_mean.dtype if weight is None else weight.dtype) for one in sums)
    return torch.cat(grads).contiguous(memory_format=memory_format(input)), of_weight, of_bias
