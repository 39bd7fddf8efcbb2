"""The modulation of one step together with the cross-entropy of the joint logits, and its backward."""

from typing import cast

from torch import Tensor

from agm.ops._backends import select


def modulate_cross_entropy(
    masked_logits: Tensor,  # (2**M - 1, B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    *,
    weight: Tensor | None,  # (C,) of the accumulation type
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    label_smoothing: float,
    update: bool,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss (), c_S (2**M - 1,) float64, and what the backward needs: the normalizer (2, B) and the sums (2,).

    `agm.ops.reference.modulate_cross_entropy` says what is computed. The arguments are taken as checked.
    """
    op = select("modulate_cross_entropy", masked_logits.device, backend, rows=masked_logits.shape[0])
    settings = (alpha, max_gap, floor, ignore_index, label_smoothing, update)
    result = op(masked_logits.detach(), target, values, counts, weight, *settings)
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], result)


def modulate_cross_entropy_backward(
    grad_loss: Tensor,  # ()
    grad_logits: Tensor | None,  # (B, C)
    joint_logits: Tensor,  # (B, C)
    target: Tensor,  # (B,) int64
    weight: Tensor | None,  # (C,)
    normalizer: Tensor,  # (2, B)
    sums: Tensor,  # (2,) float64
    subset_scales: Tensor,  # (2**M - 1,) float64
    *,
    ignore_index: int,
    label_smoothing: float,
    backend: str = "auto",
) -> Tensor:
    """c_S * g in every row, g the gradient through the loss plus `grad_logits`: (2**M - 1, B, C)."""
    op = select("modulate_cross_entropy_backward", joint_logits.device, backend)
    tensors = (grad_loss, grad_logits, joint_logits, target, weight, normalizer, sums, subset_scales)
    return cast(Tensor, op(*tensors, ignore_index, label_smoothing))
