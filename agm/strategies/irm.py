"""Information regulation: samples weighted by what teachers of single modalities disagree on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common
from agm.strategies.taught import Taught
from agm.strategies.teachers import MakeOptimizer

__all__ = ["IRM"]


class IRM(Taught):
    """Information regulation, after the mechanism of that name for cloudy scenes (Wang et al., "Multi-Modality Transfer
    Learning for Cloudy Remote Sensing Images", arXiv 2501.04283), as far as its figures tell.

        L = CE(f, y) + weight * sum_m mean over the samples of r_m(x) KL(t_m(x) || softmax f(x))

    t_m is the prediction of a teacher that was trained on modality m alone and stays as it is. The ratios r_m(x), of
    every sample, give the modality that says less of it more weight. What is ours, since the formula was not found:

        r_m = M d_m / sum_j d_j,     d_m(x) = 1 - t_m(x)_y

    and that the class label stands in the place of the source network's prediction, of which the original has no
    labels; its filter of pseudo-labels is not needed then. Teachers that are not given are trained at the first epoch
    of the window: a copy of each encoder with the weights of that moment and a linear head, for `teacher_epochs`.

    Args:
        network: see `Strategy`.
        weight: of the teachers, >= 0; 1, ours.
        teachers, make_optimizer, num_classes, widths: see `Taught`.
        teacher_epochs: see `Taught`; ours.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Raises:
        ValueError: teachers for other modalities, or none and a network that does not say its widths and classes.

    Example:
        >>> strategy = IRM(network, teachers={"optical": optical_network, "sar": sar_network})
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        weight: float = 1.0,
        teachers: Mapping[str, nn.Module] | None = None,
        teacher_epochs: int = 5,
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
        with torch.no_grad():
            taught = self.taught_logits(batch).log_softmax(-1)
            true = taught.exp().gather(2, batch.target.expand(len(taught), -1).unsqueeze(2)).squeeze(2)  # (M, B)
            gaps = 1 - true
            total = gaps.sum(0)
            # Teachers that are all certain weigh alike.
            ratios = torch.where(total > 0, len(gaps) * gaps / total.clamp_min(torch.finfo(total.dtype).tiny), 1.0)
        logs = batch.logits.log_softmax(-1)
        rows = F.kl_div(logs.expand_as(taught), taught, reduction="none", log_target=True).sum(-1)  # (M, B)
        self.latest = {"score": true.mean(1), "coefficient": ratios.mean(1)}
        return batch.joint_loss + self.weight * (ratios * rows).mean(1).sum()
