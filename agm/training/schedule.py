"""What follows from the epochs so far: the learning rate, the end, and the best epoch.

All of it is a function of the settings and of the rows of metrics.csv, so that a resumed run needs no more state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agm.training.config import Config
from agm.training.run_folder import Row

__all__ = ["best_epoch", "ended_early", "learning_rate"]

_THRESHOLD = 1e-4  # of torch.optim.lr_scheduler.ReduceLROnPlateau, by default and relative


def learning_rate(config: Config, epoch: int, history: Sequence[Row] = ()) -> float:
    """Learning rate of epoch 0, 1, ..., from the rows of the epochs before it, which schedule plateau alone looks at.

    Plateau counts as `torch.optim.lr_scheduler.ReduceLROnPlateau` does on the loss of the split that is watched.
    """
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    if config.schedule == "step":
        return config.lr * config.step_factor ** (epoch // config.step_epochs)
    if config.schedule == "plateau":
        return config.lr * config.step_factor ** _reductions([row["loss"] for row in history], config.patience)
    return config.lr


def _reductions(losses: Sequence[float], patience: int) -> int:
    best, bad, reductions = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - _THRESHOLD):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            reductions, bad = reductions + 1, 0
    return reductions


def best_epoch(history: Sequence[Row]) -> int:
    """The first of those with the highest accuracy on the split that is watched."""
    return max(range(len(history)), key=lambda epoch: (history[epoch]["accuracy"], -epoch))


def ended_early(config: Config, history: Sequence[Row]) -> bool:
    """Whether setting `early_stopping` ends the training here."""
    if config.early_stopping is None or not history:
        return False
    return len(history) - 1 - best_epoch(history) >= config.early_stopping
