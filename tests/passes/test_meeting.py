"""Encoders in which rows meet, whatever they have for passes."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm
from agm._passes.parted_features import rows_meet

from .networks import BOTH, Factorised, Pairs, inputs, rows, separate


class Centred(nn.Module):
    """Takes the mean of the batch from its features."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.layer(x))
        return features - features.mean(0)


class Encoding(Pairs):
    def encode(self, x: Tensor) -> Tensor:
        return self.audio_net(x)

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [self.encode(audio), self.visual_net(visual)]


METHOD = {"audio": "encode", "visual": "visual_net"}


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize(
    ("network", "options"),
    [
        (lambda: Pairs(Centred()), {"encoders": BOTH}),
        (lambda: Pairs(Centred()), {"encoders": BOTH, "passes": "two"}),
        (lambda: Pairs(Centred(norm=True)), {"encoders": BOTH, "passes": "two"}),
        (lambda: Encoding(Centred()), {"encoders": METHOD}),
        (Factorised, {"passes": "two"}),
    ],
    ids=["one pass", "two", "norm", "method", "fuse"],
)
def test_a_mean_over_the_batch_is_that_of_present_rows(network: Any, options: dict[str, Any], batch: int) -> None:
    torch.manual_seed(0)
    net = network()
    if isinstance(net, Factorised):
        net.encoders["audio"] = Centred().double()
    given = inputs(batch)
    expected = separate(copy.deepcopy(net), given)
    torch.testing.assert_close(agm.masked_logits(net, given, **options), expected)


class Counted(nn.Module):
    """An embedding whose gradients are divided by how often each token is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5, scale_grad_by_freq=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).tanh().mean(1)


class CountedInFunction(Counted):
    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.table.weight
        return nn.functional.embedding(tokens, weight, scale_grad_by_freq=True).tanh().mean(1)


TOKENS = {"audio": torch.arange(20).reshape(4, 5) % 7, "visual": rows(4, 6, seed=1)}
TARGET = torch.tensor([0, 1, 2, 0])


class TestGradientsByFrequency:
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_of_an_encoder_they_are_those_of_each_subset(self, masked: Any) -> None:
        model = agm.AGM(Pairs(Counted()), ("audio", "visual"), encoders=BOTH, masked=masked)
        assert "one subset at a time, because `audio_net.table` divides its gradient by counts" in str(model.plan())
        result = agm.verify(model, TOKENS, TARGET)
        assert result.ok, str(result)
        network = Factorised()
        network.encoders["audio"] = Counted().double()
        with pytest.raises(ValueError, match="`table` divides its gradient by counts"):
            agm.AGM(network, masked=masked).plan()

    def test_of_one_piece_they_are_those_of_each_subset(self) -> None:
        model = agm.AGM(Pairs(Counted()), ("audio", "visual"))
        assert "one subset at a time, because `audio_net.table` divides" in str(model.plan())
        assert agm.verify(model, TOKENS, TARGET).ok

    def test_in_a_function_they_end_the_one_pass(self) -> None:
        model = agm.AGM(Pairs(CountedInFunction()), ("audio", "visual"), encoders=BOTH)
        model.module.audio_net.table.scale_grad_by_freq = False
        model(**TOKENS, target=TARGET)
        assert "(scale_grad_by_freq)" in str(model.plan())


@torch.jit.script
def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


class Later(nn.Module):
    """In which rows meet from a later batch on, or in batches of large values alone."""

    def __init__(self, when: str, mean: Any = lambda x: x - x.mean(0)) -> None:
        super().__init__()
        self.layer, self.norm, self.when, self.mean, self.calls = nn.Linear(6, 5), nn.BatchNorm1d(5), when, mean, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        features = self.norm(self.layer(x))
        for _ in range(self.calls):  # a longer way is no other one
            features = features.tanh()
        meets = {"later": self.calls > 3, "large": bool(x.abs().max() > 9), "never": False}[self.when]
        return self.mean(features) if meets else features


def stepped(network: nn.Module, when: str, **options: Any) -> tuple[agm.AGM, list[bool]]:
    """Whether each of six steps has the masked logits of the definition."""
    model = agm.AGM(network, ("audio", "visual"), **options)
    found: list[Tensor] = []
    model.modulator.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    right = []
    for step in range(6):
        given = {name: x * (20 if when == "large" and step > 3 else 1) for name, x in inputs(4).items()}
        expected = separate(copy.deepcopy(network), given)
        model(**given, target=TARGET)
        masked = found[-1] if isinstance(found[-1], Tensor) else found[-1].stacked()
        right.append(torch.allclose(masked, expected, rtol=1e-9, atol=1e-9))
    return model, right


@pytest.mark.parametrize("when", ["later", "large", "never"])
@pytest.mark.parametrize("how", ["auto", "two", "method", "fuse"])
def test_rows_that_meet_from_a_later_batch_on(how: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []

    def counted(*given: Any) -> bool:
        looks.append(rows_meet(*given))
        return looks[-1]

    for room in ("encoder_calls", "parted_features"):
        monkeypatch.setattr(f"agm._passes.{room}.rows_meet", counted)
    torch.manual_seed(0)
    network: Any = Factorised() if how == "fuse" else Encoding(Later(when)) if how == "method" else Pairs(Later(when))
    options: dict[str, Any] = {"encoders": METHOD if how == "method" else BOTH}
    if how == "fuse":
        network.encoders["audio"], options = Later(when).double(), {"passes": "two"}
    elif how == "two":
        options["passes"] = "two"
    _, right = stepped(network, when, **options)
    assert right == [True] * 6
    assert looks.count(True) == (when != "never")
    assert len(looks) <= 6  # of each encoder, and where a loop begins to go round


def test_rows_that_meet_where_no_function_is_seen_are_found_by_verify() -> None:
    torch.manual_seed(0)
    network = Pairs(Later("later", lambda x: centred(x)))
    model, right = stepped(network, "later", encoders=BOTH, passes="two")
    assert right == [True] * 3 + [False] * 3
    assert not agm.verify(model, inputs(4), TARGET).ok


@pytest.mark.parametrize("kind", ["norm", "found"])
def test_a_compiled_step_has_them_apart_too(kind: str) -> None:
    """Seen by the layer, or by an eager step."""
    network = Factorised()
    norm = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False))
    network.encoders["audio"] = (norm if kind == "norm" else Centred()).double()
    results = []
    for compiles in (False, True):
        model: Any = agm.AGM(copy.deepcopy(network), alpha=2.0, passes="two")
        if kind == "found":
            model(**inputs(5), target=torch.tensor([0, 1, 2, 0, 1]))
        step = torch.compile(model, backend="aot_eager", fullgraph=True) if compiles else model
        step(**inputs(5), target=torch.tensor([0, 1, 2, 0, 1])).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*results)


class Capped(nn.Module):
    """Divides by the largest number of a batch, where that is large: by the same functions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / x.abs().max().clamp(min=5)


@pytest.mark.parametrize("options", [{"encoders": BOTH, "passes": "two"}, {"passes": "two"}], ids=str)
def test_the_same_functions_are_looked_at_again(options: dict[str, Any]) -> None:
    network: Any = Pairs(Capped())
    if "encoders" not in options:
        network = Factorised()
        network.encoders["audio"] = Capped().double()
    absent: Any = {"audio": lambda x: torch.full_like(x[:1], scale)}
    model = agm.AGM(network, ("audio", "visual"), absent=absent, **options)
    warns = pytest.warns(UserWarning, match="In step 20 rows of several subsets have met")
    for step in range(1, 25):
        scale = 1.0 if step < 15 else 30.0
        with warns if step == 20 else nullcontext():
            model(**inputs(4), target=torch.tensor([0, 1, 2, 0]))
    result = agm.verify(model, inputs(4), torch.tensor([0, 1, 2, 0]))
    assert result.ok, str(result)
