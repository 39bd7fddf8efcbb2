"""Clipping of the gradient norm, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["clip_gradients_", "head_weights"]


def head_weights(network: nn.Module) -> list[nn.Parameter]:
    """Weights of the layers that give the logits of a network of `agm.models`: one layer, or one a modality."""
    heads = [network.get_submodule(name) for name in ("classifier", "heads") if hasattr(network, name)]
    return [parameter for head in heads for parameter in head.parameters() if parameter.dim() > 1]


@torch.no_grad()
def clip_gradients_(
    parameters: Iterable[nn.Parameter], max_norm: float, head: Iterable[nn.Parameter] = (), *, above: float = 0.0
) -> Tensor:
    """Scale all gradients so that their norm is at most `max_norm`, in steps in which the head's gradient is large.

    The authors of AGM (Li et al., ICCV 2023) clip the norm to 1 in those steps in which an entry of the gradient of
    the head's weights is larger than 1 in magnitude (5 and 5 on UR-Funny); with `above` 0 it is plain clipping.

    Args:
        parameters: those whose gradients are scaled, in place.
        max_norm: the largest L2 norm of all of them together.
        head: weights of the head.
        above: the magnitude of an entry of the head's gradient beyond which gradients are clipped.

    Returns:
        () the norm before, on the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # 1e-6 as in torch.nn.utils.clip_grad_norm_, whose numbers these are.
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if above > 0:
        entries = [p.grad.abs().max() for p in head if p.grad is not None]
        factor = torch.where(torch.stack(entries).max() > above, factor, 1.0)
    torch._foreach_mul_(gradients, factor)
    return norm
