"""Operations of a step of networks whose layers take more than one way through one pass."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

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


def counts(network: Network, *variants: str) -> dict[str, float]:
    rows = list(launches(network, "late", 2, 4, CPU, variants))
    # The joint step of norms with averages of all batches reads their counters, which a pass with more rows does not.
    reads = rows[0].names["aten._local_scalar_dense.default"]
    return {row.variant: row.count - (reads if row.variant == "joint" else 0) for row in rows}


def of_norm(norm: Callable[[int], nn.Module], *variants: str) -> dict[str, float]:
    return counts(network(lambda: Blocks(norm), 2, 6, 6), *variants)


def test_an_average_of_all_batches_costs_no_operation() -> None:
    own = of_norm(partial(nn.BatchNorm2d, momentum=None), "exact", "shared")
    assert own == of_norm(nn.BatchNorm2d, "exact", "shared")


def test_norms_without_running_statistics_are_one_operation_each_way() -> None:
    blocks = partial(Blocks, partial(nn.BatchNorm2d, track_running_stats=False))
    joint, shared = launches(network(blocks, 2, 6, 6), "late", 2, 4, CPU, ["shared"])
    norms = [sum(count for name, count in row.names.items() if "batch_norm" in name) for row in (joint, shared)]
    assert norms == [12, 12]


@pytest.mark.parametrize(("affine", "bound"), [(False, 1.76), (True, 1.71)])
def test_instance_norm_with_running_statistics(affine: bool, bound: float) -> None:
    """The rows in eval mode take one operation each way, and being put together and apart; torch's norm takes ten."""
    found = of_norm(partial(nn.InstanceNorm2d, affine=affine, track_running_stats=True), "exact", "shared")
    assert max(found["exact"], found["shared"]) / found["joint"] <= bound, found
