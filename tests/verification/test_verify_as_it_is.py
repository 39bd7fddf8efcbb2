"""Networks that train rightly and do what a check may stumble over: no false alarm, no error, no trace."""

import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm
from agm.verification.result import Verification
from agm.verification.rounding import allowing

NAMES = ("audio", "visual")
BOTH = {"audio": "audio_net", "visual": "visual_net"}
TARGET = torch.tensor([0, 1, 2, 0])


class Net(nn.Module):
    def __init__(self, audio_net: nn.Module | None = None) -> None:
        super().__init__()
        self.audio_net = nn.Linear(5, 6) if audio_net is None else audio_net
        self.visual_net, self.head = nn.Linear(7, 6), nn.Linear(12, 3)

    def encoded(self, audio: Tensor) -> Tensor:
        return self.audio_net(audio)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoded(audio), self.visual_net(visual)], 1))


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"audio": torch.randn(4, 5), "visual": torch.randn(4, 7)}


class Forced(Net):
    """Takes a gradient in forward, as of an energy."""

    def encoded(self, audio: Tensor) -> Tensor:
        features = self.audio_net(audio)
        return torch.autograd.grad(features.tanh().pow(3).sum(), features, create_graph=True)[0]


class Reading(Net):
    """Reads its input by NumPy."""

    def encoded(self, audio: Tensor) -> Tensor:
        self.peak = float(audio.numpy().max())
        return self.audio_net(audio)


class Adjacent(Net):
    """Keeps a sparse tensor."""

    def __init__(self, where: str) -> None:
        super().__init__()
        graph = torch.eye(6).to_sparse()
        if where == "attribute":
            self.graph = graph
        else:
            self.register_buffer("graph", graph.to_sparse_csr() if where == "csr" else graph)

    def encoded(self, audio: Tensor) -> Tensor:
        return torch.sparse.mm(self.graph, self.audio_net(audio).t()).t()


class Prototypes(Net):
    """Writes to tensors in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = [torch.zeros(6) for _ in range(4)]
        self.bank = {"last": torch.zeros(4, 6)}

    def encoded(self, audio: Tensor) -> Tensor:
        features = self.audio_net(audio)
        if self.training:
            with torch.no_grad():
                self.bank["last"].copy_(features)
                for prototype, row in zip(self.prototypes, features, strict=True):
                    prototype.mul_(0.9).add_(row, alpha=0.1)
        return features


@pytest.mark.parametrize("encoders", [BOTH, None], ids=["encoders", "one piece"])
class TestNoFalseAlarm:
    @pytest.mark.parametrize(
        "make", [Forced, Reading, *(lambda where=where: Adjacent(where) for where in ("buffer", "csr", "attribute"))]
    )
    def test_it_trains_and_is_right(self, make: Any, encoders: Any) -> None:
        model = agm.AGM(make(), NAMES, encoders=encoders)
        F.cross_entropy(model(**inputs(), target=TARGET), TARGET).backward()
        result = agm.verify(model, inputs(), TARGET)
        assert result.ok, str(result)

    def test_tensors_in_containers_are_put_back(self, encoders: Any) -> None:
        network = Prototypes()
        result = agm.verify(agm.AGM(network, NAMES, encoders=encoders), inputs(), TARGET)
        assert result.ok, str(result)
        assert not any(bool(x.any()) for x in (*network.prototypes, network.bank["last"]))

    @pytest.mark.parametrize("bad", ["nan", "inf"])
    def test_what_forward_leaves_without_being_a_number_is_not_ok(self, bad: str, encoders: Any) -> None:
        class Lost(Net):
            def __init__(self, into: str) -> None:
                super().__init__()
                self.into = into
                self.register_buffer("ema", torch.ones(2))
                self.register_buffer("unused", torch.full((2,), float("nan")))
                self.register_buffer("mask", torch.full((2,), -float("inf")))

            def encoded(self, audio: Tensor) -> Tensor:
                if self.into == "ema":
                    self.ema = self.ema * float(bad)
                elif self.into == "aux":
                    self.aux = torch.tensor(float(bad))
                return self.audio_net(audio)

        for into, expected in (("ema", ("ema",)), ("aux", ("aux",)), ("", ())):
            result = agm.verify(agm.AGM(Lost(into), NAMES, encoders=encoders), inputs(), TARGET)
            assert result.not_finite == expected
            assert result.ok == (not into)


class Cast(nn.Module):
    """Computes in bfloat16, whatever is around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(width, 32), nn.Dropout(0.2), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.last(self.dropout(self.first(x).relu())).float()


def test_autocast_within_forward() -> None:
    network = Net(Cast(5))
    network.visual_net = Cast(7)
    model = agm.AGM(network, NAMES, encoders=BOTH)
    for seed in range(5):
        torch.manual_seed(seed)
        result = agm.verify(model, inputs(), TARGET)
        assert result.ok, str(result)
        assert result.tolerance == 0.1
    with pytest.raises(TypeError, match=r"casts to a dtype of its own .* Leave `double` out"):
        agm.verify(model, inputs(), TARGET, double=True)


class TestRounding:
    """An encoder whose features are nearly equal before a LayerNorm divides by what they differ by."""

    def model(self, apart: float) -> agm.AGM:
        torch.manual_seed(0)
        layer = nn.Linear(64, 6)
        encoder = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.1), nn.Tanh(), layer, nn.LayerNorm(6, eps=1e-30))
        network = Net(encoder).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(1, 64).double() + apart * torch.randn(6, 64).double())
            layer.bias.zero_()
        return agm.AGM(network, NAMES, encoders=BOTH)

    @pytest.mark.filterwarnings("ignore:An absent")
    def test_that_absent_rows_amplify_is_no_error(self) -> None:
        given = {name: x.double() for name, x in inputs().items()}
        result = agm.verify(self.model(1e-9), given, TARGET)
        assert result.worst > 1e-8, "the case shows nothing"
        assert result.ok, str(result)
        assert "absent rows amplify" in result.advice[0]

    def test_where_rounding_is_all_there_is_nothing_can_be_told(self) -> None:
        none: dict[str, float] = {}
        result = Verification("exact", {"audio": 0.5}, none, none, none, 1e-8)
        rounding = {"logits": {"audio": 0.4}, "gradients": none, "buffers": none, "coefficients": none, "left": none}
        assert not allowing(result, rounding).ok
        assert "nothing can be told" in allowing(result, rounding).advice[0]
        assert allowing(result, {**rounding, "logits": {"audio": 0.001}}) is result

    @pytest.mark.filterwarnings("ignore:An absent")
    def test_an_error_is_one_all_the_same(self) -> None:
        class Mixing(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                logits = super().forward(audio, visual)
                return logits + 1e-4 * logits.mean(0)

        given = {name: x.double() for name, x in inputs().items()}
        network = Mixing(self.model(1e-7).module.audio_net).double()
        result = agm.verify(agm.AGM(network, NAMES, max_rows=len(TARGET) - 1), given, TARGET)
        assert not result.ok


class Hooking(Net):
    def encoded(self, audio: Tensor) -> Tensor:
        features = self.audio_net(audio)
        if features.requires_grad:
            features.register_hook(lambda gradient: None)
        return features


@pytest.mark.parametrize("encoders", [BOTH, None], ids=["encoders", "one piece"])
def test_hooks_that_see_masked_rows_are_named(encoders: Any) -> None:
    def told(network: nn.Module) -> list[str]:
        model = agm.AGM(network, NAMES, encoders=encoders)
        model(**inputs(), target=TARGET)
        return [str(model.plan()), str(agm.verify(model, inputs(), TARGET))]

    assert not any("ooks" in text for text in told(Net()))
    network = Net()
    network.audio_net.register_full_backward_hook(lambda *given: None)
    assert all("Backward hooks of `audio_net` are called" in text for text in told(network))
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        assert all("Hooks on all modules" in text for text in told(Net()))
    finally:
        handle.remove()
    assert all("Forward gives tensors hooks" in text for text in told(Hooking()))


class Growing(Net):
    """Makes itself a scale in its first forward, or a scale for every number of rows."""

    def __init__(self, registry: str, by_rows: bool = False) -> None:
        super().__init__()
        self.registry, self.by_rows = registry, by_rows
        self.listed, self.named = nn.ParameterList(), nn.ParameterDict()

    def scale(self, rows: int) -> Tensor:
        if self.registry == "list":
            if not len(self.listed):
                self.listed.append(nn.Parameter(torch.rand(3)))
            return self.listed[0]
        if self.registry == "dict":
            name = f"of {rows}" if self.by_rows else "scale"
            if name not in self.named:
                self.named[name] = nn.Parameter(torch.ones(3))
            return self.named[name]
        if not hasattr(self, "own"):
            own = torch.rand(3)
            self.register_buffer("own", own) if self.registry == "buffer" else setattr(self, "own", nn.Parameter(own))
        return self.own

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return super().forward(audio, visual) * self.scale(len(audio))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"encoders": BOTH},
    {"encoders": BOTH, "passes": "two"},
    {"encoders": BOTH, "masked": "shared"},
    {"max_rows": 4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("registry", ["list", "dict", "parameter", "buffer"])
def test_what_forward_makes_in_the_step_is_compared_and_goes_again(registry: str, options: dict[str, Any]) -> None:
    network = Growing(registry)
    before = [*network.state_dict()]
    result = agm.verify(agm.AGM(network, NAMES, **options), inputs(), TARGET)
    assert result.ok, str(result)
    made = {"list": "listed.0", "dict": "named.scale"}.get(registry, "own")
    assert made in (result.buffers if registry == "buffer" else result.gradients)
    assert [*network.state_dict()] == before


def test_a_scale_for_every_number_of_rows_is_named() -> None:
    """The masked rows that come in one batch are scaled by another than the joint ones."""
    result = agm.verify(agm.AGM(Growing("dict", by_rows=True), NAMES), inputs(), TARGET)
    assert not result.ok
    assert result.gradients["named.of 4"] > result.tolerance


@pytest.mark.parametrize("who", ["_own_step", "_separate_step"])
def test_a_parameter_that_only_the_step_or_the_definition_has_differs(who: str) -> None:
    """Forward looks who calls it."""

    class Asking(Net):
        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            if who in [frame.name for frame in traceback.extract_stack()] and not hasattr(self, "own"):
                self.own = nn.Parameter(torch.ones(3))
            return super().forward(audio, visual) * getattr(self, "own", 1.0)

    result = agm.verify(agm.AGM(Asking(), NAMES), inputs(), TARGET)
    assert not result.ok
    assert result.gradients["own"] == float("inf")
    assert "own" in str(result)
