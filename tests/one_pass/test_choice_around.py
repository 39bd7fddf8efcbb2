"""What a network does around its encoders, and what they write to."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import agm
from agm.models import (
    LateFusion,
)

from .choosing import (
    CLASSES,
    FEATURES,
    JOINED,
    SHARED,
    TWO,
    WIDTHS,
    assert_one_is_two,
    encoded,
    normed,
    plain,
    target,
    train,
    vectors,
    why,
)


class Around(LateFusion):
    """Encodes as `how` says."""

    how: Callable[[nn.Module, Tensor], Tensor]

    def forward(self, /, **inputs: Tensor) -> Tensor:
        return self.fuse({name: self.how(encoder, inputs[name]) for name, encoder in self.encoders.items()})


def _reentrant(encoder: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(encoder, x.requires_grad_(), use_reentrant=True)


def _frozen(encoder: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder(x)


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("make", [normed, plain])
@pytest.mark.parametrize(
    "how",
    [
        _frozen,
        lambda encoder, x: checkpoint(encoder, x, use_reentrant=False),
        _reentrant,
    ],
)
def test_what_a_network_encodes_in_its_own_way_takes_two_passes(
    make: Callable[[int], nn.Module], how: Callable[[nn.Module, Tensor], Tensor], masked: Any
) -> None:
    network = Around({name: make(width) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES).double()
    network.how = how
    models = [agm.AGM(copy.deepcopy(network), passes=p, masked=masked) for p in ("one", "two")]  # type: ignore[arg-type]
    if masked == "shared" and how is _reentrant:
        with pytest.raises(ValueError, match="use_reentrant=False"):
            train(models[0], vectors)
        return
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    assert encoded(models[0]) == ([TWO, TWO] if masked == "exact" else [SHARED, SHARED])
    assert "in its own way" in why(models[0], "audio")
    for model in models:
        found = agm.verify(model, vectors(0), target())
        assert found.ok, found


class Doubling(nn.Module):
    """Writes to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mul_(2.0))


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("how", [_frozen, lambda encoder, x: encoder(x)])
@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm1d(8)])
def test_an_encoder_may_write_to_its_input(
    how: Callable[[nn.Module, Tensor], Tensor], norm: Callable[[], nn.Module], masked: Any
) -> None:
    encoders = {name: nn.Sequential(Doubling(width), norm()) for name, width in WIDTHS.items()}
    network = Around(encoders, CLASSES, num_features=FEATURES).double()
    network.how = how
    models = [agm.AGM(copy.deepcopy(network), passes=p, masked=masked) for p in ("one", "two")]  # type: ignore[arg-type]
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_a_fusion_may_write_to_the_features_that_are_shared() -> None:
    class Writing(LateFusion):
        def fuse(self, features: Any) -> Tensor:
            return super().fuse({name: x.mul_(2.0) for name, x in features.items()})

    network = Writing({name: nn.Linear(width, 8) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES)
    assert_one_is_two(copy.deepcopy(network), vectors, expected=JOINED)
    assert_one_is_two(network, vectors, JOINED, apart=SHARED, masked="shared")


def test_inputs_of_other_kinds_of_tensor() -> None:
    class Other(Tensor):
        pass

    model = agm.AGM(LateFusion({name: plain(width) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES))
    inputs = {name: x.float().as_subclass(Other) for name, x in vectors(0).items()}
    model(**inputs, target=target())
    assert "is a Other" in why(model, "audio")


def test_a_step_reads_nothing_from_the_device(no_reads: TorchDispatchMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agm.ops._checks.check_classes", lambda *_: None)
    encoders = {"audio": normed(4), "visual": plain(6)}
    model = agm.AGM(LateFusion(encoders, CLASSES, num_features=FEATURES).double(), passes="one")
    model(**vectors(0), target=target()).sum().backward()
    with no_reads:
        model(**vectors(1), target=target()).sum().backward()
