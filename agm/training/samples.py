"""The data of a run: loaded, checked, on the device, and in the order in which an epoch takes them."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training.config import Config
from agm.training.errors import UserError

__all__ = ["batches", "fingerprint", "load_data", "on_device"]


def load_data(config: Config) -> MultimodalData:
    try:
        data = datasets.load(config.dataset)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(str(error).replace("`name_or_path`", "--dataset")) from error
    for name, values in data.train.inputs.items():
        if not values.is_floating_point():
            raise UserError(
                f"Expected every modality to be real-valued for the networks of agm.models.build, but got token "
                f"ids in {name!r}. Wrap a network of your own in agm.AGM and write the loop, or store features."
            )
    if len(data.train) < 2:
        raise UserError("Expected the training split to hold 2 samples or more, but got 1. Add samples.")
    return data


def on_device(split: Split, modalities: tuple[str, ...], device: torch.device) -> Split:
    return Split({name: split.inputs[name].to(device) for name in modalities}, split.target.to(device))


def fingerprint(data: MultimodalData) -> str:
    """Of all values of all splits: a resumed run must not go on with other data."""
    digest = hashlib.sha256()
    for split_name, split in data.splits.items():
        for name, values in [*split.inputs.items(), ("target", split.target)]:
            digest.update(f"{split_name} {name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().numpy().data)
    return digest.hexdigest()


def batches(samples: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Indices of each step's samples, every sample once, in an order that (seed, epoch) decides.

    The batches are of equal size but for one sample, and at most `batch_size`. A small remainder as a batch of its
    own would be a full step on the noise of a few samples: for batch norm, and for the scores of AGM, which then
    give coefficients far from 1. Only where a batch would be a single sample, which batch norm refuses, batches are
    one larger.
    """
    entropy = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(int(entropy)))
    steps = min(math.ceil(samples / batch_size), max(samples // 2, 1))
    return list(order.tensor_split(steps))
