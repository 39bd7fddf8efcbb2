"""The modulation of additive fusions and its backward: the front door of both ops to the API."""

from typing import NamedTuple, cast

from torch import Tensor

from agm.ops._backends import select


class AdditiveGradients(NamedTuple):
    """The gradients of p_m with that of q_m behind them, (M, B + 1, C); of joint logits (B, C), if given; of b (C,)."""

    few: Tensor
    joint: Tensor | None
    bias: Tensor

    @staticmethod
    def of(rows: Tensor, batch: int, given_joint: bool) -> "AdditiveGradients":
        """What `modulate_additive_backward` returns, taken apart."""
        end = rows.shape[0] - 1
        start = end - batch if given_joint else end
        return AdditiveGradients(
            rows[:start].unflatten(0, (-1, batch + 1)), rows[start:end] if given_joint else None, rows[end]
        )


def modulate_additive(
    present: Tensor,  # (M, B, C)
    absent: Tensor,  # (M, C), of present's dtype
    bias: Tensor | None,  # (C,), of present's dtype
    joint_logits: Tensor | None,  # (B, C), of present's dtype
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64, written in place
    counts: Tensor,  # (M + 4,) int64, written in place
    *,
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step; returns the joint logits, (0, C) where they were given, and the scales (2, M + 1) float64.

    `agm.ops.reference.modulate_additive` says what is computed. The arguments are taken as checked.
    """
    op = select("modulate_additive", present.device, backend)
    parts = [None if part is None else part.detach() for part in (present, absent, bias, joint_logits)]
    settings = (alpha, max_gap, floor, ignore_index, update)
    return cast(tuple[Tensor, Tensor], op(*parts, target, values, counts, *settings))


def modulate_additive_backward(
    grad: Tensor,  # (B, C)
    scales: Tensor,  # (2, M + 1) float64
    *,
    given_joint: bool,
    backend: str = "auto",
) -> AdditiveGradients:
    """The gradients of what the joint logits are a sum of, views of one tensor."""
    op = select("modulate_additive_backward", grad.device, backend)
    return AdditiveGradients.of(op(grad, scales, given_joint), grad.shape[0], given_joint)
