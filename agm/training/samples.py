"""The data of a run: loaded, checked, split, on the device, and in the order in which an epoch takes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training.config import Config
from agm.training.errors import UserError, in_words
from agm.training.standardizing import standardized

__all__ = ["Passes", "batches", "chosen_modalities", "cut", "fingerprint", "hold_out", "load_data", "on_device"]


def load_data(config: Config) -> MultimodalData:
    try:
        data = datasets.load(config.dataset, chosen_modalities(config))
    except (ModuleNotFoundError, OSError, TypeError, ValueError) as error:
        message = (
            in_words(error).replace("`name_or_path`", "--dataset").replace("argument `modalities`", "--modalities")
        )
        raise UserError(message) from error
    if len(data.train) < 2:
        raise UserError("Expected the training split to hold 2 samples or more, but got 1. Add samples.")
    data = _with_features(data)
    if config.scale != "standard":
        return data
    try:
        return standardized(data)
    except ValueError as error:
        raise UserError(str(error)) from error


def _with_features(data: MultimodalData) -> MultimodalData:
    """The data with samples of shape (1,) where a sample is a number."""
    if all(values.dim() > 1 for values in data.train.inputs.values()):
        return data

    def widened(_: str, split: Split) -> Split:
        inputs = {name: values.unsqueeze(1) if values.dim() == 1 else values for name, values in split.inputs.items()}
        return Split(inputs, split.target, split.present)

    return data.map_splits(widened)


def chosen_modalities(config: Config) -> list[str] | None:
    """Those that setting `modalities` names; None where it leaves the choice to the data."""
    return None if config.modalities is None else [name.strip() for name in config.modalities.split(",")]


def on_device(split: Split, modalities: tuple[str, ...], device: torch.device) -> Split:
    return split.select(modalities).to(device)


def fingerprint(data: MultimodalData) -> str:
    """Of all values of all splits: a resumed run must not go on with other data."""
    digest = hashlib.sha256()
    for split_name, split in data.splits.items():
        for name, values in [*split.inputs.items(), ("target", split.target)]:
            digest.update(f"{split_name} {name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().numpy().data)
        if split.present is not None:
            digest.update(split.present.contiguous().numpy().data)
    return digest.hexdigest()


def hold_out(data: MultimodalData, config: Config) -> MultimodalData:
    """The data with `config.validation` of the training split, drawn by the seed, as their validation split.

    Raises:
        UserError: the data have a validation split already, or too few samples are left of either.
    """
    if not config.validation:
        return data
    if data.validation is not None:
        raise UserError(
            f"Expected setting `validation` to be 0 for data with a validation split of their own, but got "
            f"{config.validation}. Leave --validation out."
        )
    held = round(config.validation * len(data.train))
    if held < 1 or len(data.train) - held < 2:
        raise UserError(
            f"Expected setting `validation` to hold out 1 of the {len(data.train)} training samples or more and to "
            f"leave 2 or more, but got {config.validation}. Set it with --validation."
        )
    order = _shuffled(len(data.train), config.seed, 0, 1)
    # In their first order, so that what is left is the training split with some rows taken out.
    chosen, rest = order[:held].sort().values, order[held:].sort().values
    return replace(data, train=data.train.take(rest), validation=data.train.take(chosen))


def _shuffled(samples: int, *entropy: int) -> Tensor:
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.randperm(samples, generator=torch.Generator().manual_seed(int(state)))


def batches(samples: int, batch_size: int, *entropy: int) -> list[Tensor]:
    """Indices of each step's samples, every sample once, in an order that `entropy` (seed, epoch) decides."""
    return list(cut(_shuffled(samples, *entropy), batch_size))


def cut(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Samples in their order, cut into batches of equal size but for one sample, and at most `batch_size`.

    A small remainder as a batch of its own would be a full step on the noise of a few samples: for batch norm, and for
    the scores of AGM, which then give coefficients far from 1. Only where a batch would be a single sample, which
    batch norm refuses, batches are one larger.
    """
    samples = len(order)
    if not samples:
        return ()
    return order.tensor_split(min(math.ceil(samples / batch_size), max(samples // 2, 1)))


@dataclass
class Passes:
    """A split in batches, as often as it is iterated: each pass in another order, which `entropy` decides.

    Without entropy in its own order. With `numbered` the numbers of the samples come along, as a third item.
    """

    split: Split
    batch_size: int
    entropy: tuple[int, ...] = ()
    numbered: bool = False
    _done: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(cut(torch.arange(len(self.split)), self.batch_size))

    def __iter__(self) -> Iterator[Any]:
        samples = len(self.split)
        order = _shuffled(samples, *self.entropy, self._done, 2) if self.entropy else torch.arange(samples)
        self._done += 1
        for index in cut(order.to(self.split.target.device), self.batch_size):
            inputs = {name: values[index] for name, values in self.split.inputs.items()}
            yield (inputs, self.split.target[index], *((index,) if self.numbered else ()))
