"""torchmetrics: what each modality contributed to the training steps of an epoch."""

from typing import Any

import torch
from torch import Tensor

from agm.modulation.modulator import Modulator
from agm.modulation.scores import find_score
from agm.ops._checks import check_modalities

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "agm.integrations.torchmetrics needs torchmetrics, which is not installed: "
        "pip install 'agm-torch[torchmetrics]'"
    ) from error

__all__ = ["ModalityMetrics"]


class ModalityMetrics(Metric):
    """Accuracies of the mono-modal responses and of the joint logits, and mean scores and coefficients.

    `update(model.modulator)` after every training forward adds what the state holds of that step, on the device;
    `compute()` gives the means since `reset()`. Accuracies are shares of the samples (or tokens) that have the
    modality, scores and coefficients means over the steps in which a sample has it; they are NaN where there is none,
    and accuracies also where the score, an error say, does not tell what is right. A step without finite scores counts
    in the accuracies alone.

    Args:
        modalities: their names, in bit order.
        settings: as of `torchmetrics.Metric`.
    """

    correct: Tensor
    joint_correct: Tensor
    mono_samples: Tensor
    samples: Tensor
    scores: Tensor
    coefficients: Tensor
    steps: Tensor

    def __init__(self, modalities: tuple[str, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self.modalities = check_modalities(modalities)
        zeros = torch.zeros(len(self.modalities), dtype=torch.float64)
        for name in ("correct", "mono_samples", "scores", "coefficients", "steps"):
            self.add_state(name, zeros.clone(), dist_reduce_fx="sum")
        for name in ("joint_correct", "samples"):
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
        told = 1.0 if find_score(modulator.score).has_hits else torch.nan
        counts = state.scores.isfinite().all() & (state.mono_samples > 0)  # (M,)
        self.correct += told * state.mono_correct
        self.joint_correct += told * state.joint_correct
        self.samples += state.samples
        self.mono_samples += state.mono_samples
        self.scores += torch.where(counts, state.scores, 0.0)
        self.coefficients += torch.where(counts, state.coefficients, 0.0)
        self.steps += counts

    def compute(self) -> dict[str, Tensor]:
        """ "audio/accuracy", "audio/score", "audio/coefficient" and so on, and "joint/accuracy", each ()."""
        values = {"joint/accuracy": self.joint_correct / self.samples}
        for bit, name in enumerate(self.modalities):
            values[f"{name}/accuracy"] = self.correct[bit] / self.mono_samples[bit]
            values[f"{name}/score"] = self.scores[bit] / self.steps[bit]
            values[f"{name}/coefficient"] = self.coefficients[bit] / self.steps[bit]
        return values
