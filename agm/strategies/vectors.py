"""Gradients of several losses, as vectors over the same parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Vector", "dot", "gradient"]

Vector = list[Tensor]  # one part a parameter


def gradient(
    loss: Tensor, parameters: Sequence[nn.Parameter], *, retain: bool = False, graph: bool = False
) -> list[Tensor | None]:
    """Gradient of a loss, one part a parameter; None where the loss does not reach it.

    Args:
        loss: ().
        parameters: what it is taken with respect to.
        retain: keep the graph for another backward.
        graph: the gradient has a graph itself, which keeps that of the loss too.
    """
    found = torch.autograd.grad(loss, parameters, retain_graph=retain or graph, create_graph=graph, allow_unused=True)
    return list(found)


def dot(left: Vector, right: Vector) -> Tensor:
    """() the inner product of two vectors with parts of the same shapes."""
    return torch.stack([product.sum() for product in torch._foreach_mul(left, right)]).sum()
