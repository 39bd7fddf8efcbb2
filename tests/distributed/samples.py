"""Batches, networks and comparisons of the checks; everything is in double, where rounding is told from errors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

import agm

CLASSES, WIDTH = 3, 6
STEPS = 8  # of training; the functions take half of them


class Shares:
    """Batches of which each process gets its part; some parts may be smaller than others, or empty."""

    def __init__(self, sizes: Sequence[int], rank: int, seed: int = 0) -> None:
        self.sizes = list(sizes)
        self.total = sum(sizes)
        start = sum(sizes[:rank])
        self.own = slice(start, start + sizes[rank])
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def even(cls, rank: int, size: int, seed: int = 0) -> "Shares":
        return cls([8 // size] * size, rank, seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def batch(self) -> dict[str, Tensor]:
        """Of all samples: inputs `audio` (B, 4) and `visual` (B, 5), and `target`; the same in every process."""
        target = torch.randint(CLASSES, (self.total,), generator=self.generator)
        return {
            "audio": self.randn(self.total, 4) + target.unsqueeze(1),
            "visual": self.randn(self.total, 5),
            "target": target,
        }

    def mine(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[self.own] for name, value in batch.items()}


class Parted(nn.Module):
    """A network with `encoders` and `fuse`."""

    def __init__(self, norm: Callable[[int], nn.Module] = lambda width: nn.Identity(), summed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = {"audio": 4, "visual": 5}
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(width, WIDTH), norm(WIDTH), nn.Tanh()) for name, width in widths.items()}
        )
        head = nn.Linear(2 * WIDTH, CLASSES)
        self.head = head if summed else nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
        self.double()

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})


class Whole(nn.Module):
    """The same as one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Parted()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.inner(audio, visual)


MODALITIES = ("audio", "visual")
PATHS = {"audio": "inner.encoders.audio", "visual": "inner.encoders.visual"}


def own(model: nn.Module) -> agm.AGM:
    """The AGM in a wrapper."""
    return model if isinstance(model, agm.AGM) else model.module


def loss(model: nn.Module, given: dict[str, Any], total: int, processes: int = 1) -> Tensor:
    """The mean over all samples, once the processes' gradients are averaged."""
    if own(model).loss is not None:
        return model(**given, num_items_in_batch=total / processes)
    logits = model(**given)
    return F.cross_entropy(logits, given["target"], reduction="sum") * (processes / total)


def weights(model: nn.Module) -> list[Tensor]:
    return [whole(parameter.detach()) for parameter in model.parameters()]


def gradients(model: nn.Module) -> list[Tensor]:
    return [whole(p.grad) for p in model.parameters() if p.grad is not None]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def close(got: Any, expected: Any) -> None:
    # Of a modality that no sample has there is no score: NaN.
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11, equal_nan=True)


def same_state(got: agm.ModulationState, expected: agm.ModulationState) -> None:
    close(got.values, expected.values)
    assert torch.equal(got.counts, expected.counts)


@contextmanager
def exchanged() -> Iterator[list[int]]:
    """How many numbers each all-reduce inside has."""
    sizes: list[int] = []
    original = distributed.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    distributed.all_reduce = counted
    try:
        yield sizes
    finally:
        distributed.all_reduce = original
