"""A dataset small enough that a run takes a fraction of a second, and runs on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training import Config


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def split_of(samples: int, seed: int) -> Split:
    """Three classes; the sound shows them better than the image does."""
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (samples,), generator=random)
    audio = torch.eye(3)[target].repeat(1, 2) + 0.5 * torch.randn(samples, 6, generator=random)
    image = target.view(-1, 1, 1, 1) / 2 + torch.randn(samples, 1, 4, 4, generator=random)
    return Split({"audio": audio, "image": image}, target)


@pytest.fixture
def data() -> MultimodalData:
    """49 training samples: four batches of 13 and 12."""
    return MultimodalData("tiny", split_of(49, 0), split_of(30, 1), None, ("a", "b", "c"))


@pytest.fixture
def dataset(data: MultimodalData, tmp_path: Path) -> Path:
    return datasets.save(data, tmp_path / "tiny.npz")


@pytest.fixture
def settings(dataset: Path) -> Callable[..., Config]:
    """Early fusion: batch norm in the fusion and in the image's encoder, and dropout, which draws at random."""

    def build(**changes: Any) -> Config:
        base = {"fusion": "early", "width": 8, "epochs": 3, "batch_size": 16, "threads": 1, "device": "cpu"}
        return Config(**{"dataset": str(dataset), **base, **changes})

    return build
