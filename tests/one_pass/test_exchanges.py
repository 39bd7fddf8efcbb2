"""A step exchanges the statistics of each norm once, forward and backward, whatever becomes of its one pass."""

import copy
import warnings
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import agm

from .exchanging import logged, synchronised, unknown
from .passes import rows

BATCH = 6


class Encoder(nn.Module):
    """A chain with a skip, and two branches: a norm each in 8, 7, 5 and 6 channels.

    Attributes:
        leaves: the place at which its rows can no longer be followed; None: nowhere.
    """

    leaves: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 7), nn.Linear(8, 5)
        self.norm8, self.norm7, self.norm5 = nn.BatchNorm1d(8), nn.BatchNorm1d(7), nn.BatchNorm1d(5)
        self.last, self.norm6 = nn.Linear(12, 6), nn.BatchNorm1d(6, momentum=None)
        self.skip, self.drop = nn.Linear(4, 6), nn.Dropout(0.2)

    def _at(self, place: int, x: Tensor) -> Tensor:
        return unknown(x) if self.leaves == place else x

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu_(self.norm8(self.first(self.drop(self._at(0, x)))))
        left = self.norm7(self.second(self._at(1, h)))
        right = self.norm5(self._at(2, self.third(h)))
        joined = self.last(torch.cat([self._at(3, left).tanh(), right], 1))
        return self._at(4, self.drop(self.norm6(joined)) + self.skip(x))


PLACES = range(5)


class Parted(nn.Module):
    def __init__(self, encoder: type[nn.Module] = Encoder) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"audio": encoder(), "visual": encoder()})
        self.head = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))
        self.double()

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})


class Whole(nn.Module):
    def __init__(self, encoder: type[nn.Module] = Encoder) -> None:
        super().__init__()
        self.inner = Parted(encoder)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.inner(audio, visual)


NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "parted": (Parted, {}),
    "paths": (Whole, {"encoders": {name: f"inner.encoders.{name}" for name in ("audio", "visual")}}),
}


def build(
    kind: str, masked: str, passes: str, encoder: type[nn.Module] = Encoder, plain: bool | None = None, **options: Any
) -> agm.AGM:
    """A model whose norms exchange statistics; plain ones are for comparison, in two passes."""
    make, paths = NETWORKS[kind]
    network = make(encoder)
    network = network if plain or (plain is None and passes == "two") else synchronised(network)
    options = {"alpha": 2.0, "process_group": False, **options}
    return agm.AGM(network, ("audio", "visual"), masked=masked, passes=passes, **paths, **options)


def batch(number: int, size: int = BATCH) -> dict[str, Tensor]:
    inputs = {"audio": rows(size, 4, seed=number), "visual": rows(size, 4, seed=number + 100)}
    return {**inputs, "target": torch.arange(size) % 3}


def encoder_of(model: agm.AGM, name: str) -> nn.Module:
    found: nn.Module = getattr(model.module, "inner", model.module).encoders[name]
    return found


def step(model: agm.AGM, number: int, size: int = BATCH) -> list[Any]:
    """All that a step leaves behind."""
    torch.manual_seed(number)
    model.zero_grad()
    given = batch(number, size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = model(**given)
    F.cross_entropy(logits, given["target"]).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [logits.detach(), gradients, [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()]


_OF_ENCODER = [8, 7, 5, 6]
ONCE = [("forward", c) for c in 2 * _OF_ENCODER] + [("backward", c) for c in reversed(2 * _OF_ENCODER)]


@pytest.mark.parametrize("kind", [*NETWORKS])
@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_one_pass(kind: str, masked: str) -> None:
    model, single = build(kind, masked, "one"), build(kind, masked, "two")
    for number in range(3):
        with logged() as log:
            found = step(model, number)
            assert log == ONCE
            plan = str(model.plan())
        torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)
    assert "a pass of their own" not in plan
    assert "by itself" not in plan


@pytest.mark.parametrize("kind", [*NETWORKS])
@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("place", PLACES)
def test_a_pass_that_ends_in_the_middle_of_an_encoder(kind: str, masked: str, place: int) -> None:
    """In the second of three batches: what was exchanged until then is not exchanged again."""
    model, single = build(kind, masked, "auto"), build(kind, masked, "two")
    for number in range(3):
        for one in (model, single):
            encoder_of(one, "audio").leaves = place if number == 1 else None
        with logged() as log:
            found = step(model, number)
            assert log == ONCE
            assert ("it calls `renorm`" in str(model.plan())) == (number == 1)
        torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)


class Sized(nn.Module):
    """Its code reads the number of rows between two norms, and its mode behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm8, self.second = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)
        self.norm6 = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm8(self.first(x)))
        x = self.norm6(x if int(x.shape[0]) else x * 2.0)
        return x.tanh() if self.training else torch.tanh(x)


@pytest.mark.parametrize("kind", [*NETWORKS])
def test_a_first_batch_that_is_looked_at(kind: str) -> None:
    """Also one of another size, which is looked at by itself."""
    model, single = build(kind, "exact", "auto", Sized), build(kind, "exact", "two", Sized)
    once = [("forward", c) for c in (8, 6, 8, 6)] + [("backward", c) for c in (6, 8, 6, 8)]
    for number, size in enumerate((6, 4, 6, 3)):
        with logged() as log:
            found = step(model, number, size)
            assert log == once
            assert "a pass of their own" not in str(model.plan())
        torch.testing.assert_close(found, step(single, number, size), rtol=1e-10, atol=1e-11)


class Checkpointed(nn.Module):
    """A norm, and an activation checkpoint with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm8 = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.second, self.norm6 = nn.Linear(8, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm8(self.first(x))
        return checkpoint(lambda h: self.norm6(self.second(h)), x, use_reentrant=False)


@pytest.mark.parametrize("kind", [*NETWORKS])
def test_a_checkpoint_behind_a_norm(kind: str) -> None:
    """As often as where two passes were chosen at once: the checkpoint exchanges again where it is recomputed."""
    model, single = build(kind, "exact", "auto", Checkpointed), build(kind, "exact", "two", Checkpointed)
    other = build(kind, "exact", "two", Checkpointed, plain=False)
    for number in range(2):
        with logged() as expected:
            step(other, number)
        with logged() as log:
            found = step(model, number)
        assert log == expected
        torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)


class Twice(nn.Module):
    """Calls a norm with running statistics twice, which in eval mode has those of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm6 = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm6(self.norm6(self.first(x)).tanh())


@pytest.mark.parametrize("kind", [*NETWORKS])
def test_a_norm_that_is_called_twice(kind: str) -> None:
    model, single = build(kind, "exact", "auto", Twice), build(kind, "exact", "two", Twice)
    for number in range(2):
        with logged() as log:
            found = step(model, number)
            assert log == [("forward", 6)] * 4 + [("backward", 6)] * 4
            assert "a norm of it is called twice" in str(model.plan())
        torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)


class Siamese(Whole):
    """Encodes one modality twice."""

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        features = {"audio": self.inner.encoders["audio"](audio), "visual": self.inner.encoders["visual"](visual)}
        features["audio"] = features["audio"] * self.inner.encoders["audio"](audio)
        return self.inner.fuse(features)


def test_an_encoder_that_is_called_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call exchanges by itself, whether it is one pass or ends in its middle."""
    monkeypatch.setitem(NETWORKS, "siamese", (Siamese, NETWORKS["paths"][1]))
    for place in (None, *PLACES):
        model, single = build("siamese", "exact", "auto"), build("siamese", "exact", "two")
        for one in (model, single):
            encoder_of(one, "audio").leaves = place
        forward = 3 * _OF_ENCODER
        for number in range(2):
            with logged() as log:
                found = step(model, number)
            assert log == [("forward", c) for c in forward] + [("backward", c) for c in reversed(forward)]
            torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", [*NETWORKS])
def test_absent_inputs_that_are_learnt(kind: str) -> None:
    """They have a gradient at the first norm, which train rows by themselves have not: two passes, and why."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm4, self.last = nn.BatchNorm1d(4), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm4(x))

    absent = {"audio": nn.Parameter(torch.full((4,), 0.1, dtype=torch.float64))}
    model = build(kind, "exact", "auto", First, absent=absent)
    single = build(kind, "exact", "two", First, absent=copy.deepcopy(absent))
    for number in range(2):
        with logged() as log:
            found = step(model, number)
            assert log == [("forward", 4)] * 2
            assert "a gradient that its absent rows have" in str(model.plan())
        torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", [*NETWORKS])
def test_an_exchange_that_fails(kind: str) -> None:
    """It is not tried again, and the step has left nothing behind."""
    model, single = build(kind, "exact", "auto"), build(kind, "exact", "two")
    failures = []

    def failing(layer: nn.SyncBatchNorm, x: Tensor) -> Tensor:
        if layer.training and layer.num_features == 5:
            failures.append(layer)
            raise ConnectionError("the other process has gone")
        return plain(layer, x)

    with logged() as log:
        plain = nn.SyncBatchNorm.forward
        with patch.object(nn.SyncBatchNorm, "forward", failing), pytest.raises(ConnectionError, match="has gone"):
            step(model, 0)
        assert (log, len(failures)) == ([("forward", 8), ("forward", 7)], 1)
        found = step(model, 0)
    torch.testing.assert_close(found, step(single, 0), rtol=1e-10, atol=1e-11)


CALLS: list[int] = []


class Astray(Encoder):
    """Takes another way the second time, since it counts outside of itself and of its class."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(1)
        if len(CALLS) == 2:
            return self.norm6(self.skip(x))
        return super().forward(x)


def test_a_repetition_that_goes_astray() -> None:
    """It ends in an error, and not in statistics of another layer."""
    model = build("parted", "exact", "auto", Astray)
    encoder_of(model, "audio").leaves = 3
    CALLS.clear()
    with logged() as log, pytest.raises(RuntimeError, match="Expected an encoder whose norms exchange statistics"):
        step(model, 0)
    assert log == [("forward", 8), ("forward", 7), ("forward", 5)]


class Early(Encoder):
    """As that, and returns before any norm."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(1)
        return self.skip(x) if len(CALLS) == 2 else super().forward(x)


def test_a_repetition_that_exchanges_less() -> None:
    model = build("parted", "exact", "auto", Early)
    encoder_of(model, "audio").leaves = 1
    CALLS.clear()
    with logged(), pytest.raises(RuntimeError, match="to call them in the same order"):
        step(model, 0)


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("passes", ["one", "auto"])
def test_kept_absent_features(masked: str, passes: str) -> None:
    """Whether a process computes them anew in this step or not."""
    options = {"absent_gradient": False, **({"absent_refresh": 2} if masked == "shared" else {})}
    for kind in NETWORKS:
        model, single = (build(kind, masked, one, **options) for one in (passes, "two"))
        for number in range(3):
            with logged() as log:
                found = step(model, number)
                assert log == ONCE
            torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)
