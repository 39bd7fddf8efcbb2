"""Operations of a step of networks whose layers take more than one way through one pass."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import agm.models
from bench.launches import launches
from bench.networks import Encoder, Network

CPU = torch.device("cpu")


class Blocks(nn.Module):
    """Convolutions with a norm behind each."""

    num_features = 6

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        blocks = [layer for width in (2, 6, 6) for layer in (nn.Conv2d(width, 6, 3, padding=1), norm(6), nn.ReLU())]
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def network(encoder: Callable[[], nn.Module], *shape: int) -> Network:
    encoders = tuple(Encoder(name, shape, lambda pool: encoder()) for name in ("audio", "image"))
    return Network("layers", encoders, 3, 8, 8, 1.0, (), most_rivals=0)


def counts(network: Network, *variants: str, modalities: int = 2) -> dict[str, float]:
    rows = list(launches(network, "late", modalities, 4, CPU, variants))
    return {row.variant: row.count for row in rows}


def of_norm(norm: Callable[[int], nn.Module], *variants: str) -> dict[str, float]:
    return counts(network(lambda: Blocks(norm), 2, 6, 6), *variants)


class Last(nn.Module):
    """The last output of a recurrent layer."""

    num_features = 8

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(4, 8, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0][:, -1]
        return out


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: agm.models.MLPEncoder(6, num_features=8), (6,)),
    "lstm": (lambda: Last(nn.LSTM), (5, 4)),
    "gru": (lambda: Last(nn.GRU), (5, 4)),
    "cnn": (lambda: agm.models.SmallCNN(2, 8, pool="mean"), (2, 12, 12)),
}


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_added_does_not_grow_with_the_encoders(name: str, modalities: int) -> None:
    """Present and absent rows are one call of an encoder, in both modes where it has dropout or norms."""
    encoder, shape = SMALL[name]
    found = counts(network(encoder, *shape), "exact", "shared", modalities=modalities)
    bound = 28 + 9 * (modalities - 2)
    assert max(found["exact"], found["shared"]) - found["joint"] <= bound, found


def test_an_average_of_all_batches_costs_no_operation() -> None:
    """In the joint step of torch each norm reads its counter besides."""
    own, other = (of_norm(norm, "exact", "shared") for norm in (partial(nn.BatchNorm2d, momentum=None), nn.BatchNorm2d))
    assert own.pop("joint") == other.pop("joint") + 6
    assert own == other


def test_norms_without_running_statistics_are_one_operation_each_way() -> None:
    blocks = partial(Blocks, partial(nn.BatchNorm2d, track_running_stats=False))
    joint, shared = launches(network(blocks, 2, 6, 6), "late", 2, 4, CPU, ["shared"])
    norms = [sum(count for name, count in row.names.items() if "batch_norm" in name) for row in (joint, shared)]
    assert norms == [12, 12]


@pytest.mark.parametrize(("affine", "bound"), [(False, 1.68), (True, 1.64)])
def test_instance_norm_with_running_statistics(affine: bool, bound: float) -> None:
    """The rows in eval mode take one operation each way, and being put together and apart; torch's norm takes ten."""
    found = of_norm(partial(nn.InstanceNorm2d, affine=affine, track_running_stats=True), "exact", "shared")
    assert max(found["exact"], found["shared"]) / found["joint"] <= bound, found
