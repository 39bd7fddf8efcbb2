"""Networks of one modality each, trained side by side, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_choice
from agm.strategies.alternating import Alternating
from agm.strategies.batch import Batch
from agm.strategies.heads import linear_heads
from agm.strategies.strategy import Common, Outcome

__all__ = ["UnimodalEnsemble"]


class UnimodalEnsemble(Alternating):
    """Late ensemble of unimodal networks, the baseline without any competition: each encoder and its head are trained
    on their modality alone, and the prediction is a mean.

        "logits":         f = (1/M) sum_m u_m
        "probabilities":  f = log (1/M) sum_m softmax(u_m)

    Each batch makes one update a modality, of its own parameters with CE(u_m, y), the same as if that network were
    trained by itself on these batches, clipping included. So an epoch is one pass through every encoder and back, as
    one of joint training is. With a linear head the networks are those of `unimodal:NAME` under late fusion. The mean
    of logits is the Uni-Modal Ensemble of Du et al., "On Uni-Modal Feature Learning in Supervised Multi-Modal
    Learning", ICML 2023.

    The network's own fusion is neither trained nor used: `predictor` predicts.

    Args:
        network: see `Strategy`; only its encoders are used.
        mean: of "logits" (B, C), or of "probabilities", of which there are some for classes alone. Numbers that are to
            be predicted are logits.
        common: see `Strategy`. `heads` maps each modality to a head of its own. There is nothing outside the window
            that is not inside.

    Raises:
        ValueError: heads that are missing or shared; probabilities of a target that is not a class.

    Example:
        >>> strategy = UnimodalEnsemble(network, heads=linear_heads(network.widths, 6))
    """

    trains_heads = True
    tasks = frozenset({"classes", "labels", "numbers"})

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Literal["logits", "probabilities"] = "logits",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.mean = check_choice("mean", mean, ("logits", "probabilities"))
        if len(set(self.heads.values())) != len(self.modalities):
            raise ValueError(
                f"Expected argument `heads` to map each of {', '.join(self.modalities)} to a head of its own, but got "
                f"{len(set(self.heads.values()))} heads. Give heads=linear_heads(widths, num_classes)."
            )

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        return linear_heads(network.widths, num_classes)

    def combine(self, alone: Mapping[str, Tensor]) -> Tensor:
        return self.averaged(alone)

    def averaged(self, alone: Mapping[str, Tensor]) -> Tensor:
        """(B, C) mean of the logits of each modality."""
        logits = torch.stack([alone[name] for name in self.modalities])
        if self.mean == "logits":
            return logits.mean(0)
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))

    def updates(self, batch: Batch) -> Iterator[Outcome]:
        if self.mean == "probabilities" and (batch.target.is_floating_point() or batch.target.dtype == torch.bool):
            raise ValueError(
                "Expected argument `target` to be class indices for mean='probabilities', but got "
                f"{batch.target.dtype}. Use mean='logits'."
            )
        features = {name: self.feature(name, self.parts.encode(name, batch.inputs), batch) for name in self.modalities}
        alone = {name: self.alone(name, features[name]) for name in self.modalities}
        losses = {name: self.criterion(alone[name], batch.target) for name in self.modalities}
        with torch.no_grad():
            logits = self.averaged(alone)
            outcome = Outcome(self.criterion(logits, batch.target), logits)
            self.latest = {"score": torch.stack([losses[name] for name in self.modalities]).detach()}
        for loss in losses.values():
            self.zero_grad(set_to_none=True)
            loss.backward()
            yield outcome
