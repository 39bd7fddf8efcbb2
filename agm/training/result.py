"""What a finished run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from agm.training.config import Config
from agm.training.evaluation import Evaluation
from agm.training.run_folder import Row

__all__ = ["Final", "Result"]

Final = Literal["test", "validation"]  # the split that a result is of


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        folder: where its files are.
        config: its settings, resolved.
        modalities: those that the network takes.
        evaluation: figures of the last epoch, or of the one that setting `choose` means, on the test split (or on the
            one that `train` was asked for).
        history: rows of metrics.csv.
        network: the trained network, not wrapped in AGM.
        data: digest of the values of the dataset.
        extra_epochs: passes over the training split that the method took beside those of `history`, for teachers or
            copies of the network.
    """

    folder: Path
    config: Config
    modalities: tuple[str, ...]
    evaluation: Evaluation
    history: list[Row]
    network: nn.Module
    data: str
    extra_epochs: int = 0

    @property
    def epochs(self) -> int:
        """Passes over the training split in all."""
        return len(self.history) + self.extra_epochs
