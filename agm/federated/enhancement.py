"""Local training with the federation's prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor, nn

from agm.strategies import Batch, Strategy
from agm.strategies.measuring import Batches
from agm.strategies.pmr import PMR
from agm.strategies.strategy import Common

__all__ = ["ModalEnhancement"]


class ModalEnhancement(PMR):
    """Local training of BMSFed (arXiv 2401.00403): `PMR` with the prototypes of the whole federation, and its switch.

        both modalities:  CE(f, y) + alpha CE(d_m, y) of the modality m that is behind in the batch
        modality m alone: CE(f, y) + alpha CE(d_m, y), the other's feature being 0

    Args:
        network: see `agm.strategies.Strategy`.
        alpha: weight of the prototypes' losses; 1 in the released settings.
        common: see `agm.strategies.Strategy`.

    Attributes:
        modality: the one that is trained; None for both.

    Example:
        >>> strategy = ModalEnhancement(network)
        >>> strategy.receive(prototypes, known, modality="audio")
    """

    needs = frozenset()

    def __init__(self, network: nn.Module, *, alpha: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(network, alpha=alpha, entropy=0.0, **common)
        self.hard = True
        self.modality: str | None = None

    def receive(self, prototypes: Mapping[str, Tensor], known: Tensor, modality: str | None = None) -> None:
        """Take the federation's prototypes, and what to train on.

        Args:
            prototypes: modality -> (C, F).
            known: (C,) bool, classes that have one.
            modality: the one to train; None for both.
        """
        self.prototypes, self._known, self.modality = dict(prototypes), known, modality

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        Strategy.begin_epoch(self, epoch)

    def loss(self, batch: Batch) -> Tensor:
        if not self.active or not self.prototypes:
            return batch.joint_loss
        if self.modality is None:
            return super().loss(batch)
        near, _, _ = self._near(self.modality, batch)
        return batch.joint_loss + self.alpha * near

    def feature(self, name: str, feature: Any, batch: Batch) -> Any:
        present = super().feature(name, feature, batch)
        return present if self.modality in (None, name) else present * 0
