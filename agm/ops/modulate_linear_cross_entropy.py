"""The modulation of a linear head with the cross-entropy of the joint logits: the front door of both ops to the API."""

from typing import cast

from torch import Tensor

from agm.ops._backends import select


def modulate_linear_cross_entropy(
    hidden: Tensor,  # (2**M - 1, B, D)
    weight: Tensor,  # (C, D), of the dtype of `hidden`, as the bias is
    bias: Tensor | None,  # (C,)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    *,
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    label_smoothing: float,
    update: bool,
    chunk_rows: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss (), c_S (2**M - 1,) float64, and what the backward needs: the normalizer (2, B) and the count ().

    `agm.ops.reference.modulate_linear_cross_entropy` says what is computed. The arguments are taken as checked.
    """
    op = select("modulate_linear_cross_entropy", hidden.device, backend)
    tensors = [None if one is None else one.detach() for one in (hidden, weight, bias)]
    settings = (alpha, max_gap, floor, ignore_index, label_smoothing, update, chunk_rows)
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], op(*tensors, target, values, counts, *settings))


def modulate_linear_cross_entropy_backward(
    grad_loss: Tensor,  # ()
    hidden: Tensor,  # (2**M - 1, B, D)
    weight: Tensor,  # (C, D)
    bias: Tensor | None,  # (C,)
    target: Tensor,  # (B,) int64
    normalizer: Tensor,  # (2, B)
    count: Tensor,  # () float64
    subset_scales: Tensor,  # (2**M - 1,) float64
    *,
    ignore_index: int,
    label_smoothing: float,
    chunk_classes: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `hidden` (2**M - 1, B, D), of the weight (C, D) and of the bias (C,)."""
    op = select("modulate_linear_cross_entropy_backward", hidden.device, backend)
    tensors = (grad_loss, hidden, weight, bias, target, normalizer, count, subset_scales)
    return cast(tuple[Tensor, Tensor, Tensor], op(*tensors, ignore_index, label_smoothing, chunk_classes))
