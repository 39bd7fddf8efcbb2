"""The whole network on one modality: what its mono-modal concept is trained with, where fusion is not late."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from agm.competition import alone

__all__ = ["SingleModality"]


class SingleModality(nn.Module):
    """A network as one of a single modality: the inputs of its others are absent (zeros).

    Args:
        network: takes the modalities as keywords.
        modality: the one that this network takes.
        shapes: modality -> shape of one sample, of all that `network` takes.
        integers: those modalities whose samples are integers: text and token ids.
    """

    def __init__(
        self,
        network: nn.Module,
        modality: str,
        shapes: Mapping[str, tuple[int, ...]],
        integers: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.modality = modality
        self._shapes = dict(shapes)
        self._integers = frozenset(integers)

    def whole(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `network` gets for {modality: (B, ...)}."""
        present = inputs[self.modality]
        floating = present.dtype if present.is_floating_point() else torch.get_default_dtype()
        like = {
            name: present.new_empty(1, *shape, dtype=torch.int64 if name in self._integers else floating).expand(
                len(present), *shape
            )
            for name, shape in self._shapes.items()
        }
        return alone({**like, self.modality: present}, self.modality)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (B, C)."""
        return cast(Tensor, self.network(**self.whole(inputs)))
