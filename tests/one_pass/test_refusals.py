"""What ends the one pass, and with which words; what is allowed beside it."""

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm.models
from agm._one_pass.choice import choose
from agm._one_pass.layouts import Unsplit
from agm._one_pass.split_pass import split_pass, what_runs

from .passes import BATCH, Twice, both, rows, two_passes
from .refused_networks import (
    AttendsAlways,
    Chance,
    CountBranch,
    Counting,
    CountNumber,
    DropsAlways,
    FunctionalDropout,
    FunctionalNorm,
    Hooked,
    LenBranch,
    Mixing,
    Mode,
    ModeByName,
    ModeInABase,
    ModeInAClosure,
    ModeInAFunction,
    ModeInProperty,
    ModeOfAnother,
    Noise,
    Norm,
    NormsAlways,
    NumpyChance,
    OnTime,
    OwnBackward,
    Picking,
    Positional,
    Queue,
    Recomputing,
    Replaced,
    Sorting,
    Storing,
    Swallowing,
    ThroughBooleans,
    ToNumpy,
    Tracking,
    Unregistered,
)

REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (Mode, "runs otherwise in eval mode"),
    (ModeByName, "asks for its mode"),
    (ModeInProperty, "runs otherwise in eval mode"),
    (ModeOfAnother, "asks for its mode"),
    (ModeInAFunction, "asks for its mode"),
    (ModeInAClosure, "asks for its mode"),
    (ModeInABase, "runs otherwise in eval mode"),
    (FunctionalDropout, "draws random numbers in eval mode too"),
    (DropsAlways, "draws random numbers in eval mode too"),
    (AttendsAlways, "draws random numbers in eval mode too"),
    (NormsAlways, "normalises as in training"),
    (FunctionalNorm, "normalises as in training"),
    (Unregistered, "draws random numbers in eval mode too"),
    (Noise, "draws random numbers .`randn_like`"),
    (Chance, "draws random numbers of Python"),
    (NumpyChance, "draws random numbers of Python or NumPy"),
    (Counting, "keeps something in its attributes"),
    (Storing, "keeps something in its attributes"),
    (Tracking, "writes to a tensor of its own"),
    (Queue, "writes into elements"),
    (Recomputing, "activation checkpoint"),
    (OwnBackward, "autograd.Function"),
    (Mixing, "`mean` over the dimension of the rows"),
    (Swallowing, "`mean` over the dimension of the rows"),
    (ThroughBooleans, "`any` over the dimension of the rows"),
    (OnTime, "`all` over the dimension of the rows"),
    (Picking, "picks rows"),
    (Sorting, "along the dimension of the rows"),
    (Positional, "picks rows"),
    (LenBranch, "runs otherwise"),
    (CountBranch, "calculates with the number of rows"),
    (CountNumber, "the number of rows"),
    (ToNumpy, "`numpy`, which is not known"),
    (lambda: Twice(nn.BatchNorm1d(4)), "called twice"),
    (lambda: nn.RReLU(), "random slopes"),
    (lambda: nn.MultiheadAttention(4, 2), "attends across rows"),
    (lambda: nn.LSTM(4, 4), "states of which nobody knows"),
    (lambda: nn.Softmax(0), "along the dimension of the rows"),
    (lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "asks for its mode|a tensor of its own"),
]


def given(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    module = make().double()
    shape = (4,)
    if isinstance(module, (nn.MultiheadAttention, nn.LSTM)):
        shape = (5, 4)
        if isinstance(module, nn.MultiheadAttention):
            attention, module = module, nn.Identity()
            module.attention = attention
            module.forward = lambda x: attention(x, x, x)[0]  # type: ignore[method-assign]
    return module, rows(BATCH, *shape), rows(BATCH + 1, *shape, seed=1)


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_refused(make: Callable[[], nn.Module], reason: str) -> None:
    """And nothing is left behind: the two passes that follow are as if nothing had been tried."""
    module, train, rest = given(make)
    before = copy.deepcopy(module.state_dict())
    attributes = [dict(vars(layer)) for layer in module.modules()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
    with pytest.raises(Unsplit, match=reason):
        both(module, train, rest)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert [dict(vars(layer)) for layer in module.modules()] == attributes
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    np.testing.assert_equal(generators[2], np.random.get_state()[1:3])
    assert all(layer.training is True for layer in module.modules())


SERVES: list[tuple[Callable[[], nn.Module], str | None]] = [
    (lambda: nn.Linear(4, 4), None),
    (lambda: nn.Dropout(0.0), None),
    (lambda: nn.BatchNorm1d(4).eval(), None),
    (lambda: nn.Dropout(0.1), "depends on the mode"),
    (lambda: nn.BatchNorm1d(4), "depends on the mode"),
    (FunctionalDropout, "depends on the mode"),
    (Mode, "runs otherwise in eval mode"),
]


@pytest.mark.parametrize(("make", "reason"), SERVES)
def test_features_serve_where_nothing_depends_on_the_mode(make: Callable[[], nn.Module], reason: str | None) -> None:
    module, train, rest = given(make)
    if reason is None:
        first, more = both(module, train, rest, serves=True)
        torch.testing.assert_close(torch.cat([first, more]), module(torch.cat([train, rest])), rtol=1e-12, atol=1e-12)
        return
    with pytest.raises(Unsplit, match=reason):
        both(module, train, rest, serves=True)


class Callables(nn.Module):
    """What a forward may well do."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.activation = F.gelu
        self.scale = lambda x: x * 2.0
        self.widths = [1, 2]

    @staticmethod
    def pooled(x: Tensor) -> Tensor:
        return x.mean(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the training mode out of it."""
        if x.ndim != 3:
            raise ValueError(f"training wants three dimensions, got {x.shape}")
        return torch.cat([self.pooled(self.scale(self.activation(self.dropout(x)))) for _ in self.widths], -1)


ALLOWED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "callables": (Callables, (4, 3)),
    "replaced": (Replaced, (4,)),
    "a subclass": (lambda: Norm(4), (4,)),
    "a small CNN": (lambda: agm.models.SmallCNN(), (1, 28, 28)),
    "a ResNet": (lambda: agm.models.ResNet18(1), (1, 17, 17)),
    "an MLP": (lambda: agm.models.MLPEncoder(4), (4,)),
    "maxout": (lambda: agm.models.Maxout(4, 4), (4,)),
    "a transformer": (lambda: agm.models.TransformerEncoder(4), (5, 4)),
    "an LSTM": (lambda: First(nn.LSTM(4, 4, num_layers=2, batch_first=True)), (5, 4)),
    "functional": (lambda: FunctionalMode(), (4,)),
    "a length": (lambda: Length(), (5, 4)),
}


class First(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class FunctionalMode(nn.Module):
    """The dropout of most models: by its mode, asked for or handed on."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.3, training=self.training)
        return F.scaled_dot_product_attention(*[x[:, None]] * 3, dropout_p=0.4 if self.training else 0.0)[:, 0]


class Length(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) * 2.0


@pytest.mark.parametrize("kind", [*ALLOWED])
def test_allowed(kind: str) -> None:
    """As two passes, with the same draws."""
    make, shape = ALLOWED[kind]
    module = make().double()
    train, rest = rows(BATCH, *shape), rows(BATCH + 1, *shape, seed=1)
    other = copy.deepcopy(module)
    torch.manual_seed(0)
    expected = two_passes(other, train, rest)
    torch.manual_seed(0)
    found = torch.cat(both(module, train, rest))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=1e-12, atol=1e-12)


class LateBranch(nn.Module):
    """Leaves its layer out in some later batch, in training alone."""

    skips = False

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and type(self).skips else self.linear(x)


def test_a_batch_that_runs_otherwise_than_the_one_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    module, train, rest = given(LateBranch)
    more = {id(train): rest}
    expected = what_runs(module, ((train,), {}), more, BATCH, BATCH + 1)
    split_pass(module, ((train,), {}), more, BATCH, BATCH + 1, serves=False, expected=expected)
    monkeypatch.setattr(LateBranch, "skips", True)
    with pytest.raises(Unsplit, match="runs otherwise than in a batch that was looked at"):
        split_pass(module, ((train,), {}), more, BATCH, BATCH + 1, serves=False, expected=expected)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks(hook: str) -> None:
    chosen = choose("audio", nn.Sequential(nn.Linear(4, 4), Hooked(hook)), "auto", torch.device("cpu"))
    assert (chosen.how, "has hooks" in chosen.why) == ("two", True)


def test_hooks_on_all_modules() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hooks on all modules" in choose("audio", nn.Linear(4, 4), "auto", torch.device("cpu")).why
    finally:
        handle.remove()
    assert choose("audio", nn.Linear(4, 4), "auto", torch.device("cpu")).how == "joined"
