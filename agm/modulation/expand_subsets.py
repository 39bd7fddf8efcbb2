"""The features of every proper subset of the modalities as one batch, for loops of one's own."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from agm import ops
from agm.ops import _checks
from agm.ops._derivatives import once_differentiable
from agm.shapley.weights import MAX_MODALITIES

__all__ = ["expand_subsets"]

_INTEGER = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class _ExpandSubsets(torch.autograd.Function):
    """Rows (B, D_m) of every modality and then their absent rows (1, D_m) -> ((2**M - 2) * B, D)."""

    @staticmethod
    def forward(ctx: Any, concatenate: bool, backend: str, *rows: Tensor) -> Tensor:
        present, absent = list(rows[: len(rows) // 2]), list(rows[len(rows) // 2 :])
        ctx.concatenate, ctx.backend = concatenate, backend
        ctx.batch, ctx.widths = present[0].shape[0], [one.shape[1] for one in present]
        return ops.expand_subsets(present, absent, concatenate=concatenate, backend=backend)

    @staticmethod
    @once_differentiable(
        "expand_subsets", "For a gradient penalty call agm.ops.reference.expand_subsets, which is plain torch."
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        present, absent = ops.expand_subsets_backward(
            grad, ctx.widths, ctx.batch, concatenate=ctx.concatenate, backend=ctx.backend
        )
        grads = _parts(present, ctx.batch, ctx.widths) + _parts(absent, 1, ctx.widths)
        needed = ctx.needs_input_grad[2:]
        return None, None, *(one if need else None for one, need in zip(grads, needed, strict=True))


def _parts(flat: Tensor, rows: int, widths: list[int]) -> list[Tensor]:
    parts = flat.split([rows * width for width in widths])
    return [part.view(rows, width) for part, width in zip(parts, widths, strict=True)]


def expand_subsets(
    present: Sequence[Tensor],
    absent: Sequence[Tensor],
    *,
    combine: Literal["concat", "sum"] = "concat",
    backend: str = "auto",
) -> Tensor:
    """The features of every proper subset of the modalities, combined, as one batch for the rest of a network.

    Where a modality is absent from a subset, its absent row takes the place of its features. The native kernels write
    each row once, with no copies between. Gradients reach all inputs; they cannot be differentiated again.

    The joint logits are not among the rows: they come from the joint pass, and go last::

        masked = fusion(agm.expand_subsets([a, v], [a0, v0])).view(2, len(y), -1)  # 2**M - 2 subsets
        joint = fusion(torch.cat([a, v], 1))
        logits = agm.fused_modulate(torch.cat([masked, joint[None]]), y, state)

    Args:
        present: the features of 2 to 16 modalities, in bit order. "concat": (B, D_m, ...), alike from the third
            dimension on; "sum": (B, ...), all of one shape. At least two dimensions each.
        absent: what stands for each of them where it is absent, one row (1, ...) of the shape of its features.
        combine: "concat" joins the features along dimension 1; "sum" adds them up, in the order of the modalities, in
            float32 (float64 for float64).
        backend: "auto", or the name of one in `agm.backends()`, which is then used or raises.

    The dtype is one for all: float32, bfloat16, float16 or float64; to concatenate, any integer or bool too, which
    carries no gradient.

    Returns:
        ((2**M - 2) * B, sum D_m, ...) for "concat", ((2**M - 2) * B, ...) for "sum": B rows of the subset with
        bitmask 1 (bit m set: modality m present), then those of bitmask 2, and so on, as in `agm.masked_logits`.

    Raises:
        TypeError: something is no tensor, or of a dtype that cannot be expanded.
        ValueError: a count, shape, dtype or device that does not fit; nothing has been computed then.
        RuntimeError: a backend asked for by name cannot serve here.
    """
    if combine not in ("concat", "sum"):
        raise ValueError(f"Expected argument `combine` to be 'concat' or 'sum', but got {combine!r}.")
    concatenate = combine == "concat"
    _check_tensors("present", present)
    _check_tensors("absent", absent, present[0].device if present else None)
    _check_present(present, concatenate)
    _check_absent(absent, present)
    rows = [one.flatten(1) for one in (*present, *absent)]
    if torch.is_grad_enabled() and any(one.requires_grad for one in rows):
        expanded: Tensor = _ExpandSubsets.apply(concatenate, backend, *_apart(rows))
    else:
        expanded = ops.expand_subsets(
            rows[: len(present)], rows[len(present) :], concatenate=concatenate, backend=backend
        )
    joined = sum(one.shape[1] for one in present) if concatenate else present[0].shape[1]
    return expanded.view(expanded.shape[0], joined, *present[0].shape[2:])


def _apart(rows: Sequence[Tensor]) -> list[Tensor]:
    """No tensor twice, as one absent row for all: torch.compile traces no autograd function that is given one so."""
    return [one.view_as(one) if any(one is other for other in rows[:place]) else one for place, one in enumerate(rows)]


def _check_tensors(name: str, tensors: object, device: torch.device | None = None) -> None:
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(
            f"Expected argument `{name}` to be a list of tensors, one a modality, but got {type(tensors).__name__}."
        )
    for m, one in enumerate(tensors):
        _checks.check_tensor(f"{name}[{m}]", one, device, "`present[0]` is")
        device = one.device if device is None else device


def _check_present(present: Sequence[Tensor], concatenate: bool) -> None:
    if not 2 <= len(present) <= MAX_MODALITIES:
        raise ValueError(
            f"Expected argument `present` to hold the features of 2 to {MAX_MODALITIES} modalities, but got "
            f"{len(present)}. Pass a list of one tensor a modality."
        )
    first = present[0]
    if first.dtype not in (_checks.FLOATING + _INTEGER if concatenate else _checks.FLOATING):
        raise TypeError(
            f"Expected argument `present` to hold features in float32, bfloat16, float16 or float64 (or, for "
            f"combine='concat', integers or bools), but got {first.dtype}. Convert them, or embed them first."
        )
    for m, one in enumerate(present):
        if one.dim() < 2:
            raise ValueError(
                f"Expected argument `present` to hold features of shape (batch, size, ...), but got "
                f"{tuple(one.shape)} at {m}. For one feature a sample pass features[:, None]."
            )
        if one.shape[0] != first.shape[0]:
            raise ValueError(
                f"Expected argument `present` to hold features of the same samples, but got {first.shape[0]} at 0 and "
                f"{one.shape[0]} at {m}."
            )
        if one.shape[2:] != first.shape[2:] or not (concatenate or one.shape == first.shape):
            what = "alike but for dimension 1 to concatenate" if concatenate else "of one shape to sum"
            raise ValueError(
                f"Expected argument `present` to hold features {what}, but got {tuple(first.shape)} at 0 and "
                f"{tuple(one.shape)} at {m}. Project them to sizes that fit."
            )
        _check_kind("present", m, one, first)


def _check_absent(absent: Sequence[Tensor], present: Sequence[Tensor]) -> None:
    if len(absent) != len(present):
        raise ValueError(
            f"Expected argument `absent` to hold one row for each of the {len(present)} modalities, but got "
            f"{len(absent)}."
        )
    for m, (none, one) in enumerate(zip(absent, present, strict=True)):
        if none.shape != (1, *one.shape[1:]):
            raise ValueError(
                f"Expected argument `absent` to hold one row of shape {(1, *one.shape[1:])} at {m}, but got "
                f"{tuple(none.shape)}. Pass what the encoder makes of one absent input, or zeros."
            )
        _check_kind("absent", m, none, present[0])


def _check_kind(name: str, m: int, one: Tensor, first: Tensor) -> None:
    if one.dtype != first.dtype:
        raise ValueError(
            f"Expected argument `{name}` to hold {first.dtype}, as `present` does at 0, but got {one.dtype} at {m}. "
            "Convert it with .to(dtype); autocast may have left it so."
        )
