"""Uni-modal teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from torch import Tensor, nn

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common
from agm.strategies.taught import Taught, feature_errors
from agm.strategies.teachers import MakeOptimizer

__all__ = ["UMT"]


class UMT(Taught):
    """UMT, uni-modal teacher (Du et al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning", ICML
    2023).

    Encoders that were trained alone hand on their features while the network is trained jointly.

        L = CE(f, y) + weight * sum_m mean (h_m - t_m)^2

    h_m is the feature of encoder m (B, ...) and t_m that of a frozen teacher which was trained on modality m alone; the
    mean is over samples and dimensions. Any fusion will do. This is the loss of BalanceBenchmark's code, from which the
    default weight is; the paper's own settings were not at hand.

    Teachers that are not given are copies of the network's encoders with a linear head, trained for `teacher_epochs`
    before the first epoch of the window: so many epochs more than joint training. Those of the paper have weights of
    their own at the start.

    Args:
        network: see `Strategy`.
        weight: alpha in BalanceBenchmark, >= 0; 1.
        teachers, make_optimizer, num_classes, widths: see `Taught`. Teachers have encoders like the network's.
        teacher_epochs: see `Taught`; 30, the epochs of all methods in BalanceBenchmark.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Raises:
        ValueError: see `Taught`; or features of another shape than the network's.

    Example:
        >>> strategy = UMT(network, teacher_epochs=30)
    """

    asks_features = True
    tasks = frozenset({"classes", "labels", "numbers"})

    def __init__(
        self,
        network: nn.Module,
        *,
        weight: float = 1.0,
        teachers: Mapping[str, nn.Module] | None = None,
        teacher_epochs: int = 30,
        make_optimizer: MakeOptimizer | None = None,
        num_classes: int | None = None,
        widths: Mapping[str, int] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            network,
            teachers=teachers,
            teacher_epochs=teacher_epochs,
            make_optimizer=make_optimizer,
            num_classes=num_classes,
            widths=widths,
            **common,
        )
        self.weight = check_number("weight", weight)

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        features, _ = self.taught(batch)
        return batch.joint_loss + self.weight * feature_errors(batch.features, features)
