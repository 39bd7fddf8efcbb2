"""A `fuse` that writes to the features it is given, whose masked rows are copies of those of one pass."""

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm.models import LateFusion


class Writing(LateFusion):
    """Scales features in place, before its head reads them."""

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return super().fuse({name: one.mul_(2.0).add_(0.5) for name, one in features.items()})


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


class Followed(nn.Sequential):
    """No chain of known layers, so that its rows are followed."""


def followed() -> nn.Module:
    return Followed(*plain())


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("encoder", [normed, plain, followed])
def test_is_what_two_passes_make(encoder: Callable[[], nn.Module], masked: Literal["exact", "shared"]) -> None:
    torch.manual_seed(0)
    sizes = {"a": 3, "b": 3}
    first = Writing({name: encoder() for name in sizes}, 4, num_features=sizes).double()
    found = []
    for passes in ("one", "two"):
        network = copy.deepcopy(first)
        model = agm.AGM(network, masked=masked, passes=passes)
        torch.manual_seed(1)
        for _ in range(3):
            inputs = {name: torch.randn(5, 6, dtype=torch.float64) for name in sizes}
            target = torch.randint(4, (5,))
            F.cross_entropy(model(**inputs, target=target), target).backward()
        grads = [parameter.grad for parameter in network.parameters()]
        found.append([*grads, model.modulator.state.coefficients.clone(), *network.buffers()])
    torch.testing.assert_close(found[0], found[1])
