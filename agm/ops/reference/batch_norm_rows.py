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
    running_mean: Tensor,  # (C,)
    running_var: Tensor,  # (C,)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    train_rows: int,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows [:train_rows] are normalised by their own statistics, the others by the updated running ones.

    Nothing is written: the updated statistics, `(1 - momentum) running + momentum batch` with the unbiased variance,
    are results (Ioffe and Szegedy, "Batch Normalization", 2015, as torch computes it).

    Returns:
        the output, of the input's shape and dtype; the updated mean and variance (C,) of the running ones' dtype; and
        the mean (C,) and `1 / sqrt(variance + eps)` (C,) of the train rows, of the accumulation type.
    """
    train, rest = input[:train_rows], input[train_rows:]
    normalised, mean, invstd, updated_mean, updated_var = torch.ops.aten._native_batch_norm_legit_functional(
        train, weight, bias, running_mean, running_var, True, momentum, eps
    )
    if len(rest) > 0:
        evaluated = torch.native_batch_norm(rest, weight, bias, updated_mean, updated_var, False, momentum, eps)[0]
        normalised = torch.cat([normalised, evaluated])
    wide = accumulation_dtype(input.dtype)
    output = normalised.contiguous(memory_format=memory_format(input))
    return output, updated_mean, updated_var, mean.to(wide), invstd.to(wide)


def batch_norm_rows_backward(
    grad: Tensor,  # (N, C, ...)
    input: Tensor,  # (N, C, ...)
    weight: Tensor | None,  # (C,)
    mean: Tensor,  # (C,) of the train rows
    invstd: Tensor,  # (C,) of the train rows
    updated_mean: Tensor,  # (C,)
    updated_var: Tensor,  # (C,)
    train_rows: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input, and of weight and bias (C,), each summed over train rows and eval rows.

    No gradient flows through the updated statistics, as none does through running ones.
    """
    if input.device.type == "cpu":  # there torch keeps what it saves in the dtype of the parameters
        mean, invstd = mean.to(updated_mean.dtype), invstd.to(updated_mean.dtype)
    grads: list[Tensor] = []
    sums: list[Tensor] = []
    cuts = (slice(None, train_rows), slice(train_rows, None))
    for rows, running, saved in zip(
        cuts, ((None, None), (updated_mean, updated_var)), ((mean, invstd), (None, None)), strict=True
    ):
        if len(input[rows]) == 0:
            continue
        training = running[0] is None
        of_input, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad[rows], input[rows], weight, *running, *saved, training, eps, [True, True, True]
        )
        grads.append(of_input)
        sums = [of_weight, of_bias] if not sums else [sums[0] + of_weight, sums[1] + of_bias]
    return torch.cat(grads).contiguous(memory_format=memory_format(input)), sums[0], sums[1]
