"""The rescaling of gradients in place: the front door of the op to the API."""

from torch import Tensor

from agm.ops._backends import select


def scale_gradients_(
    grads: list[Tensor],  # any shapes, written in place
    groups: list[int],  # of each gradient: its coefficient
    coefficients: Tensor,  # (G,) float64
    seed: Tensor | None,  # (1,) int64; None for no noise
    *,
    backend: str = "auto",
) -> None:
    """g <- k g in every gradient, k being its group's coefficient; with a seed, normal noise is added.

    `agm.ops.reference.scale_gradients_` says what is computed. The arguments are taken as checked.

    There is no Triton kernel: one cannot take a list of tensors by value, and a table of their addresses would have
    to be copied to the device in every step. On a GPU without the CUDA library the reference serves.
    """
    if grads:
        select("scale_gradients_", coefficients.device, backend)(grads, groups, coefficients, seed)
