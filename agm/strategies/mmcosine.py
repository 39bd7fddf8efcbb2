"""Multi-modal cosine loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_flag, check_number
from agm.strategies.alternating import Alternating, Ensemble
from agm.strategies.batch import Batch
from agm.strategies.heads import last_linear, pooled
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common

__all__ = ["MMCosine"]


class MMCosine(Alternating):
    """MMCosine (Xu et al., "MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained Learning",
    ICASSP 2023): logits of cosines, so that no modality outweighs the others by the norms of its features or weights.

        z_c = scale * sum_m cos(W_mc, h_m),    L = CE(z, y)

    W_mc is the row of class c in the part of the network's last linear layer that feature m meets; its bias has no part
    in it. `predictor` predicts with these logits. The head must split: late fusion by one linear layer on the
    concatenated features, or by a sum of one a modality. The encoders are called on their modality's input as it is.

    Departures of the released code: it trains on z and counts the accuracy of the linear layer's logits, norms and bias
    included (`released=True`: the network itself predicts). Its command for gated fusion cannot run, since a layer that
    reads one vector has no columns for a second modality.

    Args:
        network: see `Strategy`. A modality's own head, where `heads` are given, stands for its part of the network's.
        scale: s in the paper, > 0; 10, the released default. BalanceBenchmark has 15.
        released: predict as the released code does.
        common: see `Strategy`. There is no window: a network that is trained on cosines predicts by cosines.

    Raises:
        ValueError: a head that does not split, at the latest in the first step; `heads` with any other than one linear
            layer; a window of epochs; or a scale of 0.

    Example:
        >>> strategy = MMCosine(network, scale=10.0)
        >>> strategy.predictor(audio=a, visual=v)
    """

    why_alone = "it calls the encoders alone, without the wrapper that averages gradients"

    def __init__(
        self, network: nn.Module, *, scale: float = 10.0, released: bool = False, **common: Unpack[Common]
    ) -> None:
        super().__init__(network, **common)
        self.factor = check_number("scale", scale)
        self.released = check_flag("released", released)
        if not self.factor:
            raise ValueError(f"Expected argument `scale` to be above 0, but got {scale!r}.")
        if self.start or self.stop is not None:
            raise ValueError(
                "Expected no window, since a network that is trained on cosines predicts by them, but got "
                f"`start` {self.start} and `stop` {self.stop}. Leave both out."
            )
        for name, head in self.heads.items():
            count = sum(isinstance(layer, nn.Linear) for layer in head.modules())
            if count != 1:
                raise ValueError(
                    f"Expected the head of `{name}` to have one linear layer, with whose rows cosines are taken, but "
                    f"got {count}. Give for example LinearHead(width, num_classes)."
                )
        # A network of `agm.models` says at once whether its head splits; of others the first pass does.
        if not self.heads and hasattr(network, "widths") and not hasattr(network, "split_head"):
            raise self._does_not_split()

    @property
    def predictor(self) -> nn.Module:
        return self.network if self.released else _Cosines(self)

    def run(self, batch: Batch) -> tuple[dict[str, Any] | None, Tensor]:
        self.find_head(batch.inputs)
        return super().run(batch)

    def find_head(self, given: Any) -> None:
        """Looks where the network's weights are, in a pass of what a step is given, if it is not known.

        Raises:
            ValueError: the head does not split.
        """
        if self.heads or self.parts.head_weights() is not None:
            return
        with evaluation(self.network), torch.no_grad():
            self.parts.run(given)
        if self.parts.head_weights() is None:
            raise self._does_not_split()

    def alone(self, name: str, feature: Any) -> Tensor:
        vector = pooled(feature)
        return self.factor * F.linear(F.normalize(vector, dim=1), F.normalize(self._weight(name), dim=1))

    def combine(self, alone: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([alone[name] for name in self.modalities]).sum(0)

    def _weight(self, name: str) -> Tensor:
        if self.heads:
            layer = last_linear(self.heads[name])
            assert layer is not None
            return layer.weight
        weights = self.parts.head_weights()
        if weights is None:
            raise self._does_not_split()
        return weights[name]

    def _does_not_split(self) -> ValueError:
        return ValueError(
            f"Expected argument `network` to end in a linear layer whose columns belong to single modalities, but that "
            f"of {type(self.network).__name__} does not split. Use late fusion, or give `heads` of one linear layer "
            "each."
        )


class _Cosines(Ensemble):
    def __init__(self, strategy: MMCosine) -> None:
        super().__init__(strategy)
        self._find_head = strategy.find_head

    def forward(self, /, *batch: Any, **inputs: Any) -> Tensor:
        self._find_head(batch[0] if batch else inputs)
        return super().forward(*batch, **inputs)
