"""What strategies have in common that train one modality at a time and predict from what each says alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agm.strategies.batch import Batch
from agm.strategies.heads import pooled
from agm.strategies.strategy import Outcome, Strategy

__all__ = ["Alternating", "Ensemble"]


class Alternating(Strategy):
    """Base of strategies without a joint network: each encoder has a head, and the logits of all are combined.

    The network gives the encoders, which are called on their modality's input as it is; its own fusion is not trained
    and not used. `predictor` is the ensemble. A subclass writes `updates` and `combine`, and `alone` if its heads are
    not `heads`.
    """

    @abstractmethod
    def combine(self, alone: Mapping[str, Tensor]) -> Tensor:
        """Joint logits (B, C) from those of each modality."""

    def alone(self, name: str, feature: Any) -> Tensor:
        """Logits (B, C) of one modality from its feature."""
        logits: Tensor = self.heads[name](feature)
        return logits

    @property
    def predictor(self) -> nn.Module:
        return Ensemble(self)

    def run(self, batch: Batch) -> tuple[dict[str, Any] | None, Tensor]:
        features = {name: self.feature(name, self.parts.encode(name, batch.inputs), batch) for name in self.modalities}
        return features, self.together(features)

    def together(self, features: Mapping[str, Any]) -> Tensor:
        """Joint logits (B, C) from the features of all modalities."""
        return self.combine({name: self.alone(name, features[name]) for name in self.modalities})

    @torch.no_grad()
    def ensemble_outcome(self, batch: Batch) -> Outcome:
        """The ensemble's at the weights of now, on the features that the batch has."""
        logits = self.together(batch.features)
        return Outcome(self.criterion(logits, batch.target), logits)


class Ensemble(nn.Module):
    """The network that an `Alternating` strategy predicts with: its encoders, and a fusion that combines logits.

    Args:
        strategy: whose modules it shares.
    """

    def __init__(self, strategy: Alternating) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(strategy.parts.encoders)
        self.others = nn.ModuleList(child for name, child in strategy.named_children() if name != "module")
        self._strategy = (strategy,)  # in a tuple, so that it is no submodule
        self.training = strategy.training

    def fuse(self, features: Mapping[str, Any]) -> Tensor:
        """Logits (B, C) from the features of all modalities."""
        return self._strategy[0].together(features)

    def fused_features(self, features: Mapping[str, Any]) -> Tensor:
        """(B, sum of the widths) the features side by side, all that the logits are read from."""
        return torch.cat([pooled(features[name]) for name in self.encoders], 1)

    def forward(self, /, *batch: Any, **inputs: Any) -> Tensor:
        """Logits (B, C) from one input a modality, by keyword; or from what a step is given, by position."""
        parts = self._strategy[0].parts
        given = parts.taken(batch[0] if batch else inputs)
        return self.fuse({name: parts.encode(name, given) for name in self.encoders})
