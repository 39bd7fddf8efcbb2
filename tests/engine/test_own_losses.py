"""Losses that forward computes itself: refused where they are of the logits, whatever their place; others may stay."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

NAMES = ("audio", "visual")
ENCODERS = {"audio": "audio_net", "visual": "visual_net"}
TARGET = torch.tensor([0, 1, 2, 0])


class Network(nn.Module):
    """Returns what `make` makes of the logits, the features and the network."""

    def __init__(self, make: Callable[[Tensor, Tensor, Any], Any]) -> None:
        super().__init__()
        self.audio_net, self.visual_net, self.head = nn.Linear(5, 4), nn.Linear(6, 4), nn.Linear(8, 3)
        self.make = make

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        features = torch.cat([self.audio_net(audio), self.visual_net(visual)], 1).tanh()
        return self.make(self.head(features), features, self)


def inputs_of() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"audio": torch.randn(4, 5), "visual": torch.randn(4, 6)}


def loss_of(logits: Tensor) -> Tensor:
    return -logits.log_softmax(1)[:, 0].mean()


def cross_entropies(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)) % 3, reduction="none")


def binary(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")


def deep(logits: Tensor, features: Tensor, network: Any) -> Any:
    ends = [network.head(network.head(features).relu() @ network.head.weight) for _ in range(2)]
    return {"logits": ends[0], "ce": loss_of(ends[1])}


def scaled(logits: Tensor, features: Tensor, network: Any) -> Any:
    return {"logits": (logits / 2).float(), "ce": loss_of(logits)}


OF_THE_LOGITS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "before them": (lambda z, h, n: (loss_of(z), z), {"output": 1}, "at 0"),
    "behind them": (lambda z, h, n: (z, loss_of(z)), {"output": 0}, "at 1"),
    "another name": (lambda z, h, n: {"logits": z, "ce": loss_of(z)}, {}, "at ce"),
    "nested": (lambda z, h, n: {"logits": z, "losses": {"all": [loss_of(z)]}}, {}, r"at losses\.all\.0"),
    "an attribute": (lambda z, h, n: SimpleNamespace(logits=z, ce=loss_of(z)), {}, "at ce"),
    "with others": (lambda z, h, n: {"logits": z, "sum": h.square().mean() + 2 * loss_of(z)}, {}, "at sum"),
    "of shape (1,)": (lambda z, h, n: {"logits": z, "ce": loss_of(z).view(1)}, {}, "at ce"),
    "of logits that are scaled": (scaled, {}, "at ce"),
    "of what came of them": (lambda z, h, n: {"logits": z, "ce": -z.softmax(1).log()[0, 0]}, {}, "at ce"),
    "of logits made once more": (lambda z, h, n: {"logits": z, "ce": loss_of(n.head(h))}, {}, "at ce"),
    "of logits made before": (lambda z, h, n: {"logits": n.head(h), "ce": loss_of(z)}, {}, "at ce"),
    "of what a deep head made once more": (deep, {}, "at ce"),
    "one a sample": (lambda z, h, n: {"logits": z, "ce": cross_entropies(z)}, {}, "at ce"),
    "one a sample, in a tuple": (lambda z, h, n: (z, cross_entropies(z)), {"output": 0}, "at 1"),
    "one a sample, named so": (
        lambda z, h, n: {"logits": z, "token_losses": -z.log_softmax(1)[:, 0]},
        {},
        "at token_l",
    ),
    "one a sample, as the `loss`": (lambda z, h, n: {"logits": z, "loss": cross_entropies(z)}, {}, "a `loss`"),
    "one a class": (lambda z, h, n: {"logits": z, "bce": binary(z, z.detach() > 0)}, {}, "at bce"),
    "one a sample of one class": (
        lambda z, h, n: {"logits": z[:, 0], "bce": binary(z[:, 0], z[:, 0].detach() > 0)},
        {"score": "squared_error"},
        "at bce",
    ),
    "beside a tensor named so": (lambda z, h, n: {"logits": z, "loss": loss_of(z)}, {}, "a `loss`"),
}


@pytest.mark.parametrize("encoders", [None, ENCODERS])
@pytest.mark.parametrize("kind", OF_THE_LOGITS)
def test_a_loss_of_the_logits_is_refused_where_it_is(kind: str, encoders: dict[str, str] | None) -> None:
    make, options, place = OF_THE_LOGITS[kind]
    model = agm.AGM(Network(make), NAMES, encoders=encoders, **options)
    with pytest.raises(ValueError, match=f"loss of its own.*holds (one )?{place}"):
        model(**inputs_of(), target=TARGET)
    with torch.no_grad():
        model(**inputs_of(), target=TARGET)
    model.eval()(**inputs_of())


def test_it_is_found_in_whatever_step_it_comes() -> None:
    network = Network(lambda z, h, n: {"logits": z, "aux": loss_of(z) if n.late else h.square().mean()})
    network.late = False
    model = agm.AGM(network, NAMES, encoders=ENCODERS)
    for _ in range(2):
        model(**inputs_of(), target=TARGET)
    network.late = True
    with pytest.raises(ValueError, match="at aux"):
        model(**inputs_of(), target=TARGET)


def test_a_hook_on_the_network_hides_nothing() -> None:
    """Backward hooks put one node around all outputs of a module."""
    for make, is_refused in (
        (lambda z, h, n: (z, loss_of(z)), True),
        (lambda z, h, n: (z, h.square().mean()), False),
    ):
        network = Network(make)
        network.register_full_backward_hook(lambda module, before, after: None)
        model = agm.AGM(network, NAMES, output=0)
        if is_refused:
            with pytest.raises(ValueError, match="at 1"):
                model(**inputs_of(), target=TARGET)
        else:
            model(**inputs_of(), target=TARGET)


OF_OTHERS: dict[str, Callable[..., Any]] = {
    "features": lambda z, h, n: {"logits": z, "aux": {"norm": h.square().mean()}},
    "parameters": lambda z, h, n: {"logits": z, "aux": {"norm": n.head.weight.square().sum()}},
    "a head of one modality": lambda z, h, n: {"logits": z, "aux": {"norm": loss_of(h[:, :3])}},
    "made after the logits": lambda z, h, n: {"logits": z, "aux": {"norm": (h - h.mean(0)).square().mean()}},
    "detached": lambda z, h, n: {"logits": z, "aux": {"norm": (h[:, :3] - z.detach()).square().mean()}},
}


@pytest.mark.parametrize("encoders", [None, ENCODERS])
@pytest.mark.parametrize("kind", OF_OTHERS)
def test_an_auxiliary_loss_keeps_its_gradient(kind: str, encoders: dict[str, str] | None) -> None:
    torch.manual_seed(0)
    network = Network(OF_OTHERS[kind])
    model = agm.AGM(network, NAMES, encoders=encoders)
    output = model(**inputs_of(), target=TARGET)
    output["aux"]["norm"].backward()
    got = [p.grad for p in network.parameters()]
    network.zero_grad()
    network(**inputs_of())["aux"]["norm"].backward()
    for one, parameter in zip(got, network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


class Both(torch.autograd.Function):
    """Logits and a loss from one function."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.clone(), loss_of(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        return gradient


def test_what_one_function_returns_is_doubted_once() -> None:
    def make(logits: Tensor, features: Tensor, network: Any) -> dict[str, Tensor]:
        logits, loss = Both.apply(logits)
        return {"logits": logits, "ce": loss}

    model = agm.AGM(Network(make), NAMES)
    with pytest.warns(UserWarning, match="scalar with a gradient at ce"):
        model(**inputs_of(), target=TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs_of(), target=TARGET)


@pytest.mark.parametrize("encoders", [None, ENCODERS])
def test_numbers_of_the_logits_one_a_sample_are_doubted_once(encoders: dict[str, str] | None) -> None:
    def make(logits: Tensor, features: Tensor, network: Any) -> dict[str, Tensor]:
        chances = logits.softmax(1)
        return {"logits": logits, "chances": chances, "norm": features.norm(dim=1), "confidence": chances.amax(1)}

    model = agm.AGM(Network(make), NAMES, encoders=encoders)
    with pytest.warns(UserWarning, match="numbers at chances"):
        model(**inputs_of(), target=TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs_of(), target=TARGET)


class Keeping(Network):
    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits = super().forward(audio, visual)
        self.losses = {"ce": loss_of(logits), "norm": self.head.weight.square().sum()}
        self.each, self._hidden = cross_entropies(logits), SimpleNamespace(nll=-logits.log_softmax(1)[:, :1])
        self.head.norm = self.head.weight.square().sum()
        return logits


@pytest.mark.parametrize("encoders", [None, ENCODERS])
def test_a_loss_kept_in_an_attribute_is_named(encoders: dict[str, str] | None) -> None:
    model = agm.AGM(Keeping(lambda z, h, n: z), NAMES, encoders=encoders)
    assert "passes by the modulation" not in str(model.plan())
    model(**inputs_of(), target=TARGET)
    assert "own logits in `losses.ce`, `each`, `_hidden.nll`:" in str(model.plan())
    found = agm.verify(agm.AGM(Keeping(lambda z, h, n: z), NAMES, encoders=encoders), inputs_of(), TARGET)
    assert found.ok
    assert any("own logits in `losses.ce`, `each`, `_hidden.nll`:" in one for one in found.advice)


@pytest.mark.parametrize("encoders", [None, ENCODERS])
@pytest.mark.parametrize(
    ("make", "options", "other"),
    [
        (lambda z, h, n: {"logits": z, "scores": z}, {}, lambda out: out["scores"]),
        (lambda z, h, n: (z, [z, h]), {"output": 0}, lambda out: out[1][0]),
        (lambda z, h, n: SimpleNamespace(logits=z, inner={"z": z}), {}, lambda out: out.inner["z"]),
    ],
)
def test_the_logits_under_another_name_are_modulated_too(
    make: Any, options: dict[str, Any], other: Callable[[Any], Tensor], encoders: dict[str, str] | None
) -> None:
    gradients = []
    for pick in (other, lambda out: out["logits"] if isinstance(out, dict) else getattr(out, "logits", None)):
        torch.manual_seed(0)
        network = Network(make)
        model = agm.AGM(network, NAMES, alpha=5.0, encoders=encoders, **options)
        output = model(**inputs_of(), target=TARGET)
        logits = pick(output)
        F.cross_entropy(output[0] if logits is None else logits, TARGET).backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*gradients)
    assert (model.modulator.state.coefficients != 1).all()


@pytest.mark.parametrize("make", [lambda z: z.log_softmax(1), lambda z: z.softmax(1)])
def test_numbers_of_the_shape_of_the_logits_are_doubted(make: Callable[[Tensor], Tensor]) -> None:
    model = agm.AGM(Network(lambda z, h, n: {"logits": z, "probs": make(z)}), NAMES)
    with pytest.warns(UserWarning, match="numbers at probs, which it has computed from its logits"):
        model(**inputs_of(), target=TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs_of(), target=TARGET)


def test_logits_that_are_kept_are_named() -> None:
    def keep(logits: Tensor, features: Tensor, network: Any) -> Tensor:
        network.own = [logits]
        return logits

    model = agm.AGM(Network(keep), NAMES)
    model(**inputs_of(), target=TARGET)
    assert "`own.0`: its gradient passes by the modulation" in str(model.plan())
