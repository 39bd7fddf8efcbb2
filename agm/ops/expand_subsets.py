"""The rows of every proper subset and their backward: the front door of both ops to the API."""

from typing import cast

from torch import Tensor

from agm.ops._backends import select


def expand_subsets(
    present: list[Tensor],  # (B, D_m)
    absent: list[Tensor],  # (1, D_m)
    *,
    concatenate: bool,
    backend: str = "auto",
) -> Tensor:
    """Features and absent rows of M modalities -> ((2**M - 2) * B, D), subset after subset.

    `agm.ops.reference.expand_subsets` says what is computed. The arguments are taken as checked.
    """
    op = select("expand_subsets", present[0].device, backend, rows=2 ** len(present) - 1)
    return cast(Tensor, op(present, absent, concatenate))


def expand_subsets_backward(
    grad: Tensor,  # ((2**M - 2) * B, D)
    widths: list[int],  # D_m
    batch: int,
    *,
    concatenate: bool,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The gradients of the features (sum B * D_m,) and of the absent rows (sum D_m,), modality after modality."""
    op = select("expand_subsets_backward", grad.device, backend, rows=2 ** len(widths) - 1)
    return cast(tuple[Tensor, Tensor], op(grad, widths, batch, concatenate))
