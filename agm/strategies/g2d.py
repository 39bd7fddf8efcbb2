"""Gradient-guided distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_flag, check_number, check_positive
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common
from agm.strategies.taught import Taught, feature_errors
from agm.strategies.teachers import MakeOptimizer

__all__ = ["G2D"]


class G2D(Taught):
    """G2D (Rakib and Bagavathi, "G2D: Boosting Multimodal Learning with Gradient-Guided Distillation", ICCV 2025).

        L   = CE(f, y) + logits * T^2 sum_m KL(softmax(u_m / T) || softmax(f / T)) + features * sum_m mean (h_m - t_m)^2
        s_m = mean over the batch of softmax(u_m)_y
        k_m = 0 if s_m > s_j, else 1                     of two modalities (sequential modality prioritisation)

    u_m (B, C) and t_m are the logits and the feature of a frozen teacher which was trained on modality m alone, f the
    joint logits, h_m the feature of encoder m. The gradient of encoder m is multiplied by k_m: the modality whose
    teacher is more certain waits. Outside the window all are 1, and the loss is the same: the authors train 300 epochs
    and prioritise up to and including epoch 150 (`stop=151`). This is their code; their equations for more than two
    modalities were not at hand, so that these need `prioritise=False`.

    Departures of the released code: k_m counts for 4-D convolution weights alone, so that nothing waits in a
    transformer (`convolutions_only=True`), and two equal s_m stop the training with an error.

    Teachers that are not given are copies of the network's encoders with a linear head, trained for `teacher_epochs`
    before the first epoch: so many epochs more than joint training. Those of the paper have weights of their own at the
    start, and are those of the epoch that did best on the test set.

    Args:
        network: see `Strategy`; the authors' fusion is late, by the mean of unimodal logits.
        logits, features: weights of the two losses of distillation, >= 0; 1 and 1.
        temperature: T > 0; 1.
        prioritise: multiply gradients by k_m.
        convolutions_only: those of 4-D parameters alone.
        teachers, make_optimizer, num_classes, widths: see `Taught`. Teachers have encoders like the network's.
        teacher_epochs: see `Taught`; 300.
        common: see `Strategy`. The window is that of the priorities.

    Raises:
        ValueError: see `Taught`; more than two modalities to prioritise; or features of another shape than the
            network's.

    Example:
        >>> strategy = G2D(network, teachers={"audio": audio_teacher, "image": image_teacher}, stop=151)
    """

    asks_features = True
    scales = True

    def __init__(
        self,
        network: nn.Module,
        *,
        logits: float = 1.0,
        features: float = 1.0,
        temperature: float = 1.0,
        prioritise: bool = True,
        convolutions_only: bool = False,
        teachers: Mapping[str, nn.Module] | None = None,
        teacher_epochs: int = 300,
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
        self.logits, self.features = check_number("logits", logits), check_number("features", features)
        self.temperature = check_positive("temperature", temperature)
        self.prioritise = check_flag("prioritise", prioritise)
        self.convolutions_only = check_flag("convolutions_only", convolutions_only)
        if self.prioritise and len(self.modalities) != 2:
            raise ValueError(
                f"Expected two modalities, between which G2D prioritises, but got {len(self.modalities)}. "
                "Use prioritise=False, which leaves the distillation."
            )

    @property
    def teaches(self) -> bool:
        return True

    def loss(self, batch: Batch) -> Tensor:
        features, taught = self.taught(batch)
        target = batch.target.expand(len(taught), -1).unsqueeze(2)
        self.latest = {"score": taught.softmax(-1).gather(2, target).squeeze(2).mean(1)}
        wanted = (taught / self.temperature).log_softmax(-1)
        logs = (batch.logits / self.temperature).log_softmax(-1).expand_as(wanted)
        divergences = F.kl_div(logs, wanted, reduction="none", log_target=True).sum(-1).mean(1)  # (M,)
        loss = batch.joint_loss + self.logits * self.temperature**2 * divergences.sum()
        return loss + self.features * feature_errors(batch.features, features)

    def modulate(self, batch: Batch) -> None:
        if not self.prioritise:
            return
        scores = self.latest["score"]
        coefficients = torch.where(scores > scores.flip(0), 0.0, torch.ones_like(scores))
        self.scale(coefficients, convolutions_only=self.convolutions_only)
        self.latest = {"score": scores, "coefficient": coefficients}
