"""A loss for each modality beside the joint one."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common, Strategy

__all__ = ["MultiLoss"]


class MultiLoss(Strategy):
    """Multi-loss training: `L = CE(f, y) + weight * sum_m CE(u_m, y)`.

    u_m are the logits of modality m alone: its term of a head that splits, or a head of its own. The plain sum, weight
    1, is the baseline of that name in MMPareto (Wei and Hu, ICML 2024) and MLB (Kontras et al., BMVC 2024).

    Args:
        network: see `Strategy`.
        weight: of the unimodal losses, >= 0.
        common: see `Strategy`. Outside the window the loss is the joint one.
    """

    trains_heads = True
    dense = True
    distributed = True
    tasks = frozenset({"classes", "labels", "numbers"})

    def __init__(self, network: nn.Module, *, weight: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(network, **common)
        self.weight = check_number("weight", weight)

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        losses = batch.unimodal_losses
        total = batch.joint_loss
        for name in self.modalities:
            total = total + self.weight * losses[name]
        return total
