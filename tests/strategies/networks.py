"""Tiny networks and batches on which a strategy's formula can be followed by hand."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agm.models import EarlyFusion, LateFusion


class Encoder(nn.Module):
    """A convolution, a batch norm and a linear layer: parameters of four, one and two dimensions."""

    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.norm(self.conv(x))).mean((2, 3)))


NAMES = ("audio", "image", "text")


def late(modalities: int = 2, **options: Any) -> LateFusion:
    return LateFusion({name: Encoder() for name in NAMES[:modalities]}, 4, **options)


def early(modalities: int = 2) -> EarlyFusion:
    return EarlyFusion({name: Encoder() for name in NAMES[:modalities]}, 4, hidden=(6,), dropout=0.0)


def batch_of(modalities: int = 2, samples: int = 8, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(4, (samples,), generator=random)
    inputs = {
        name: torch.randn(samples, 1, 5, 5, generator=random) + (place + 1) * target.view(-1, 1, 1, 1) / 3
        for place, name in enumerate(NAMES[:modalities])
    }
    return inputs, target


Gradients = dict[str, Tensor]


def gradients(module: nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def gradients_of(network: nn.Module, loss: Callable[[], Tensor]) -> Gradients:
    """What autograd alone gives; the gradients in the parameters are dropped before and afterwards."""
    network.zero_grad()
    loss().backward()
    found = gradients(network)
    network.zero_grad()
    return found


def belongs(name: str, modality: str) -> bool:
    return name.startswith(f"encoders.{modality}.")


def true_class_probabilities(network: LateFusion, inputs: dict[str, Tensor], target: Tensor) -> dict[str, float]:
    """Mean probability of the true class by each term of the split head, a sample at a time."""
    weight, bias = network.classifier.weight, network.classifier.bias
    share, found = weight.shape[1] // len(inputs), {}
    with torch.no_grad():
        for place, name in enumerate(inputs):
            columns = weight[:, place * share : (place + 1) * share]
            features = network.encoders[name](inputs[name])
            rows = [columns @ feature + bias / len(inputs) for feature in features]
            found[name] = sum(float(row.softmax(0)[y]) for row, y in zip(rows, target, strict=True)) / len(target)
    return found


def take(strategy: Any, inputs: dict[str, Tensor], target: Tensor, **settings: Any) -> Any:
    """The one update of a batch."""
    (outcome,) = list(strategy.steps(inputs, target, **settings))
    return outcome


class Loader:
    """The same batches as often as it is iterated."""

    def __init__(self, *batches: tuple[dict[str, Tensor], Tensor]) -> None:
        self.batches, self.passes = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        self.passes += 1
        return iter(self.batches)


def assert_same(left: Gradients, right: Gradients, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )
