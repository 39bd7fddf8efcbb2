"""Networks, settings and calls that a step ending in the loss of a linear head cannot take."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head_networks import (
    BATCH,
    CLASSES,
    HIDDEN,
    PATHS,
    TARGET,
    Net,
    ending,
    engine,
    inputs,
)


def scaled(net: Net, hidden: Tensor) -> Any:
    return net.head(hidden) * 2


def sliced(net: Net, hidden: Tensor) -> Any:
    return net.head(hidden)[:, 1:]


def twice(net: Net, hidden: Tensor) -> Any:
    net.head(hidden.detach())
    return net.head(hidden)


def by_weight(net: Net, hidden: Tensor) -> Any:
    return F.linear(hidden, net.head.weight, net.head.bias)


def with_probabilities(net: Net, hidden: Tensor) -> Any:
    logits = net.head(hidden)
    return {"logits": logits, "probabilities": logits.softmax(-1)}


def with_loss(net: Net, hidden: Tensor) -> Any:
    return {"logits": net.head(hidden), "loss": hidden.mean()}


@torch.jit.script
def scripted(logits: Tensor) -> Tensor:
    return logits.logsumexp(1).mean()


def of_the_weight(net: Net, hidden: Tensor) -> Any:
    """As fused losses of many classes are."""
    logits = F.linear(hidden, net.head.weight, net.head.bias)
    return {"logits": net.head(hidden), "lm_loss": F.cross_entropy(logits, torch.arange(len(hidden)))}


def one_a_sample(net: Net, hidden: Tensor) -> Any:
    logits = F.linear(hidden, net.head.weight, net.head.bias)
    losses = F.cross_entropy(logits, torch.arange(len(hidden)), reduction="none")
    return {"logits": net.head(hidden), "parts": (losses,)}


def by_torchscript(net: Net, hidden: Tensor) -> Any:
    logits = net.head(hidden)
    return {"logits": logits, "parts": (scripted(logits),)}


def as_a_tuple(net: Net, hidden: Tensor) -> Any:
    return net.head(hidden), hidden


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (scaled, "forward does more with what it returns, by `mul`"),
        (sliced, "forward does more with what it returns, by `__getitem__`"),
        (twice, "forward calls it 2 times"),
        (by_weight, "forward does not call it"),
        (with_probabilities, "forward does more with what it returns, by `softmax`"),
        (with_loss, "Expected the network's forward to return no loss of its own"),
        (of_the_weight, "loss of its own.* one at lm_loss, computed from the logits"),
        (one_a_sample, r"loss of its own.* one at parts\.0, computed from the logits"),
        (by_torchscript, r"loss of its own.* one at parts\.0, computed from the logits"),
        (as_a_tuple, r"a mapping or an object with a `loss` beside them.*got a tuple"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"encoders": PATHS}])
def test_a_head_that_is_not_the_last_is_refused(
    ends: Callable[[Net, Tensor], Any], words: str, settings: dict[str, Any]
) -> None:
    class Ending(Net):
        def forward(self, audio: Tensor, visual: Tensor) -> Any:
            return ends(self, self.hidden(audio, visual))

    network = Ending()
    model = ending(network, output=0 if ends is as_a_tuple else None, **settings)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            model(**inputs(), target=TARGET)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert "forward" not in vars(network.head)


@pytest.mark.parametrize("settings", [{}, {"encoders": PATHS}])
def test_losses_of_the_features_may_stay_and_kept_ones_are_named(settings: dict[str, Any]) -> None:
    class Auxiliary(Net):
        def forward(self, audio: Tensor, visual: Tensor) -> Any:
            hidden = self.hidden(audio, visual)
            logits = F.linear(hidden, self.head.weight, self.head.bias)
            self.kept = logits.logsumexp(1).mean() if self.keeps else None
            return {"logits": self.head(hidden), "aux_loss": hidden.square().mean(), "norms": hidden.norm(dim=1)}

    for keeps in (False, True):
        network = Auxiliary()
        network.keeps = keeps
        model = ending(network, **settings)
        output = model(**inputs(), target=TARGET)
        assert output["aux_loss"].requires_grad
        assert ("own logits in `kept`:" in str(model.plan())) == keeps


def hooked(net: Net) -> None:
    net.head.register_forward_hook(lambda *_: None)


def hooked_around(net: Net) -> None:
    net.register_forward_hook(lambda *_: None)


def normalised(net: Net) -> None:
    nn.utils.parametrizations.spectral_norm(net.head)


def replaced(net: Net) -> None:
    net.head.forward = lambda x: x  # type: ignore[method-assign]


def nonlinear(net: Net) -> None:
    net.head = nn.Sequential(nn.Linear(HIDDEN, CLASSES))  # type: ignore[assignment]


def compiled(net: Net) -> None:
    net.compile(backend="eager")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (compiled, "is in a part that is compiled by itself"),
        (hooked, "has hooks"),
        (hooked_around, "is in a module with hooks on its output"),
        (normalised, "computes its weight anew"),
        (replaced, "a Linear with a forward of its own"),
        (nonlinear, "is a Sequential"),
    ],
)
def test_a_head_that_is_more_than_a_linear_layer_is_refused_whenever_it_becomes_one(
    changed: Callable[[Net], None], words: str
) -> None:
    network = Net()
    model = ending(network)
    model(**inputs(), target=TARGET)
    changed(network)
    for call in (lambda: model(**inputs(), target=TARGET), lambda: ending(network)):
        with pytest.raises(ValueError, match=f"`head` to be the path of a plain nn.Linear with `loss`.*{words}"):
            call()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "hinge"}, r"`loss` to be one of \('cross_entropy', 'causal_lm'\) or None, but got 'hinge'"),
        ({"head": None}, "Expected argument `head` with `loss`"),
        ({"score": "squared_error"}, "`score` to be 'cross_entropy'"),
        ({"outside": "published"}, "`outside` to be 'joint'"),
        ({"class_dim": 1}, "`class_dim` to be None"),
        ({"subsets": 2}, "`subsets` to be None"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine(Net(), **{"head": "head", "loss": "cross_entropy", **settings})


def test_calls_that_cannot_be() -> None:
    model = ending(Net())
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="`present` to be None in a training step with `loss`"):
        model(**inputs(), target=TARGET, present=torch.ones(BATCH, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="`target` to hold the batch's targets"):
        model(**inputs())
    tokens = engine(Net(), head="head", loss="causal_lm")
    with pytest.raises(ValueError, match=r"labels \(B, T\) with .*got \(6,\)"):
        tokens(**inputs(), target=TARGET)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
