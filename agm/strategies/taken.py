"""What the network is called with in a step: each modality's input, and whatever else forward takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agm._inputs.arguments import Arguments
from agm._inputs.rows import combine
from agm._inputs.samples import unwrap

__all__ = ["IGNORED", "Taken", "is_dense", "positions"]

IGNORED = -100  # the class index that torch's cross-entropy passes over


class Taken(dict[str, Any]):
    """Modality -> its input, as the encoder is given it; that of a group maps arguments to their values.

    Args:
        arguments: of the call.

    Attributes:
        arguments: as given.
    """

    def __init__(self, arguments: Arguments) -> None:
        super().__init__({name: unwrap(value) for name, value in arguments.inputs.items()})
        self.arguments = arguments

    def repeated(self, times: int) -> Taken:
        """All samples so many times, one after another."""
        inputs, others, rest, placed = self.arguments
        every = [True] * times

        def again(value: Any) -> Any:
            return combine(value, value, every)

        return Taken(Arguments({name: again(x) for name, x in inputs.items()}, again(others), again(rest), placed))


def positions(logits: Tensor, target: Tensor) -> Tensor:
    """Logits (B, ..., C) as (N, C), where class indices (B, ...) are one a position (a token, a pixel); else as they
    are."""
    return logits.flatten(0, -2) if is_dense(target) else logits


def is_dense(target: Tensor) -> bool:
    """Whether a target holds class indices for several positions of a sample."""
    return target.dim() > 1 and not target.is_floating_point() and target.dtype != torch.bool
