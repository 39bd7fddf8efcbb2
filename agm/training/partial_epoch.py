"""An epoch that a checkpoint caught in its midst: what its steps so far have left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["PartialEpoch"]


@dataclass
class PartialEpoch:
    """The steps of the current epoch, on the device.

    Args:
        random: state of the generators before the epoch began, from which its order follows.
        model: of what is trained, before the epoch began.
        losses, hits: of each step.
        statistics: what the method had to say after each step, alike in structure.
    """

    random: dict[str, Any]
    model: dict[str, Tensor]
    losses: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    statistics: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.losses)

    def contents(self) -> dict[str, Any]:
        """For a checkpoint: one tensor a quantity rather than one a step."""
        told = [values for values in self.statistics if values is not None]
        return {
            "random": self.random,
            "model": self.model,
            "losses": torch.stack(self.losses),
            "hits": torch.stack(self.hits),
            "statistics": pytree.tree_map(lambda *steps: torch.stack(steps), *told) if told else None,
        }

    @classmethod
    def read(cls, contents: dict[str, Any], device: torch.device) -> PartialEpoch:
        """What `contents` returned."""
        losses, hits = (list(contents[name].to(device).unbind()) for name in ("losses", "hits"))
        told = contents["statistics"]
        statistics = [
            None if told is None else pytree.tree_map(lambda leaf, step=step: leaf[step].to(device), told)
            for step in range(len(losses))
        ]
        return cls(contents["random"], contents["model"], losses, hits, statistics)
