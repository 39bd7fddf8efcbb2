"""Heads of one modality each, for networks whose own head does not split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LinearHead", "hidden_heads", "last_linear", "linear_heads", "pooled"]


class LinearHead(nn.Module):
    """A linear layer on a feature (B, D), or on the mean over the tokens of a sequence or map (B, ..., D).

    Args:
        width: D.
        num_classes: C.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, feature: Any) -> Tensor:
        """(B, C), see `pooled`."""
        logits: Tensor = self.linear(pooled(feature))
        return logits


class HiddenHead(nn.Module):
    """Linear, tanh, linear on a feature (B, D) or the mean over its tokens.

    Args:
        width: D.
        hidden: width between the two.
        num_classes: C.
    """

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.hidden, self.linear = nn.Linear(width, hidden), nn.Linear(hidden, num_classes)

    def forward(self, feature: Any) -> Tensor:
        """(B, C)."""
        logits: Tensor = self.linear(torch.tanh(self.hidden(pooled(feature))))
        return logits


def pooled(feature: Any) -> Tensor:
    """A feature (B, D) as it is, or the mean over the tokens of a sequence or map (B, ..., D).

    Raises:
        TypeError: the feature is not a tensor; a padded sequence wants a head that knows its mask.
    """
    if not isinstance(feature, Tensor):
        raise TypeError(
            f"Expected the feature to be a tensor (B, ..., D), but got {type(feature).__name__}. "
            "Give `heads` of your own that take what the encoder returns."
        )
    return feature if feature.dim() == 2 else feature.flatten(1, -2).mean(1)


def linear_heads(widths: Mapping[str, int], num_classes: int) -> dict[str, nn.Module]:
    """A `LinearHead` a modality; `network.widths` of the networks in `agm.models` has the widths."""
    return {name: LinearHead(width, num_classes) for name, width in widths.items()}


def hidden_heads(widths: Mapping[str, int], hidden: int, num_classes: int) -> dict[str, nn.Module]:
    """A head with one hidden layer of `hidden` units a modality, all of whose last layers have one shape."""
    return {name: HiddenHead(width, hidden, num_classes) for name, width in widths.items()}


def last_linear(module: nn.Module) -> nn.Linear | None:
    """The last linear layer among its submodules, in the order in which they were registered."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return layers[-1] if layers else None
