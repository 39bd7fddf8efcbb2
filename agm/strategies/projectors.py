"""Soft projectors away from the directions in which features of another modality vary most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["input_covariances", "project_", "soft_projector"]


def soft_projector(covariance: Tensor, temperature: float) -> Tensor:
    """(F, F) `V diag(exp(-temperature * (l - l_min) / (l_max - l_min))) V^T` of `covariance = V diag(l) V^T`.

    The direction of the largest eigenvalue is damped by exp(-temperature), that of the smallest is kept. Equation of
    IGM (IJCAI 2025). Equal eigenvalues leave the identity.

    Args:
        covariance: (F, F), symmetric.
        temperature: >= 0.
    """
    values, vectors = torch.linalg.eigh(covariance)
    low, high = values[0], values[-1]
    share = torch.where(high > low, (values - low) / torch.where(high > low, high - low, 1.0), 0.0)
    projector: Tensor = (vectors * (-temperature * share).exp()) @ vectors.T
    return projector


@torch.no_grad()
def project_(parameter: nn.Parameter, projector: Tensor) -> None:
    """Multiplies the gradient of a weight (out, in) by a matrix (in, in) from the right, in its own precision."""
    if parameter.grad is not None:
        with torch.autocast(parameter.device.type, enabled=False):
            parameter.grad = parameter.grad @ projector.to(parameter.grad)


@torch.no_grad()
def input_covariances(
    modules: Iterable[nn.Module], batches: Iterable[Any], run: Callable[[Mapping[str, Any]], Any]
) -> dict[nn.Linear, Tensor]:
    """Linear layer -> sum over the batches of x x^T, x the mean of the layer's input over batch and tokens.

    Args:
        modules: whose linear layers are watched.
        batches: of (inputs, ...).
        run: runs the modules on the inputs of a batch.
    """
    sums: dict[nn.Linear, Tensor] = {}

    def watch(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        mean = inputs[0].flatten(0, -2).mean(0)
        assert isinstance(layer, nn.Linear)
        outer = torch.outer(mean, mean)
        sums[layer] = sums[layer] + outer if layer in sums else outer

    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        for batch in batches:
            run(batch[0])
    finally:
        for handle in handles:
            handle.remove()
    return sums
