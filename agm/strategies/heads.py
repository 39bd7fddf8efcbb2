"""Heads of one modality each, for networks whose own head does not split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["LinearHead", "linear_heads"]


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
        """(B, C).

        Raises:
            TypeError: the feature is not a tensor; a padded sequence wants a head that knows its mask.
        """
        if not isinstance(feature, Tensor):
            raise TypeError(
                f"Expected the feature to be a tensor (B, ..., D), but got {type(feature).__name__}. "
                "Give `heads` of your own that take what the encoder returns."
            )
        logits: Tensor = self.linear(feature if feature.dim() == 2 else feature.flatten(1, -2).mean(1))
        return logits


def linear_heads(widths: Mapping[str, int], num_classes: int) -> dict[str, nn.Module]:
    """A `LinearHead` a modality; `network.widths` of the networks in `agm.models` has the widths."""
    return {name: LinearHead(width, num_classes) for name, width in widths.items()}
