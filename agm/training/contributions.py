"""What each modality contributed to the test accuracy of a run."""

from __future__ import annotations

import torch

import agm
from agm import Contributions
from agm.training.environment import reproducible
from agm.training.result import Result
from agm.training.samples import load_data, on_device

__all__ = ["measure_contributions"]


def measure_contributions(result: Result, batch_size: int = 256) -> Contributions:
    """`agm.contributions` of a run's network on the test split, its the samples' values in the order of the split.

    Args:
        result: a run of two modalities or more, from `train` or `load_run`.
        batch_size: samples a pass.

    Raises:
        ValueError: the run is of one modality.
        UserError: the data do not load.
    """
    with reproducible(result.config):
        test = on_device(load_data(result.config).test, result.modalities, torch.device(result.config.device))
        return agm.contributions(result.network, test.batches(batch_size), result.modalities, present=test.present)
