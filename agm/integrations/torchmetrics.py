"""torchmetrics: what each modality contributed to the training steps of an epoch."""

from typing import Any

import torch
from torch import Tensor

from agm.modulation.modulator import Modulator

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "agm.integrations.torchmetrics needs torchmetrics, which is not installed: pip install 'agm[torchmetrics]'"
    ) from error

__all__ = ["ModalityMetrics"]


class ModalityMetrics(Metric):
    """Accuracies of the mono-modal responses and of the joint logits, and mean scores and coefficients.

    `update(model.modulator)` after every training forward adds what the state holds of that step, on the device;
    `compute()` gives the means since `reset()`. Accuracies are shares of samples, scores and coefficients means over
    the steps. A step without finite scores counts in the accuracies alone.

    Args:
        modalities: their names, in bit order.
        settings: as of `torchmetrics.Metric`.
    """

    correct: Tensor
    joint_correct: Tensor
    samples: Tensor
    scores: Tensor
    coefficients: Tensor
    steps: Tensor

    def __init__(self, modalities: tuple[str, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self.modalities = tuple(modalities)
        zeros = torch.zeros(len(self.modalities), dtype=torch.float64)
        for name in ("correct", "scores", "coefficients"):
            self.add_state(name, zeros.clone(), dist_reduce_fx="sum")
        for name in ("joint_correct", "samples", "steps"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, modulator: Modulator) -> None:
        """Adds the last step.

        Raises:
            ValueError: the modalities are others.
        """
        if modulator.modalities != self.modalities:
            raise ValueError(
                f"Expected argument `modulator` to be of the modalities {self.modalities}, but got one of "
                f"{modulator.modalities}."
            )
        state = modulator.state
        finite = state.scores.isfinite().all()
        self.correct += state.mono_correct
        self.joint_correct += state.joint_correct
        self.samples += state.samples
        self.scores += torch.where(finite, state.scores, 0.0)
        self.coefficients += torch.where(finite, state.coefficients, 0.0)
        self.steps += finite

    def compute(self) -> dict[str, Tensor]:
        """ "audio/accuracy", "audio/score", "audio/coefficient" and so on, and "joint/accuracy", each ()."""
        values = {"joint/accuracy": self.joint_correct / self.samples}
        for bit, name in enumerate(self.modalities):
            values[f"{name}/accuracy"] = self.correct[bit] / self.samples
            values[f"{name}/score"] = self.scores[bit] / self.steps
            values[f"{name}/coefficient"] = self.coefficients[bit] / self.steps
        return values
