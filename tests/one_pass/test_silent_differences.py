"""Encoders in which one pass was another number than two without a word: each is now the same, or ends the pass."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm._one_pass.layouts import Unsplit
from agm._one_pass.split_pass import what_runs

from .passes import both, rows, two_passes

B, R = 6, 7


class Of(nn.Module):
    """A function of a module and its input."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def of(function: Callable[..., Any], **parts: Any) -> nn.Module:
    return Of(function, **parts).double()


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(rows(*shape, seed=5))


def written(module: Any, x: Tensor) -> Tensor:
    cast = module.count.to(x.dtype)
    cast.add_(1.0)
    return x * cast


def swallowed(module: Any, x: Tensor) -> Tensor:
    try:
        return x * (1.0 / x.shape[0])
    except Exception:
        return x


def statistics(module: Any, x: Tensor) -> Tensor:
    mean, var = (module.a, module.b) if module.training else (module.c, module.d)
    return F.batch_norm(x, mean, var, training=module.training)


class AsksIs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if self.training is True else x


def asks_is(x: Tensor, training: Any) -> Tensor:
    return x * 2.0 if training is True else x


def asks_type(x: Tensor, training: Any) -> Tensor:
    return x * 2.0 if type(training) is bool and training else x


class Hands(nn.Module):
    """The mode to a function that it is given."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.training)


class HandsOn(nn.Module):
    """The mode to a function beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return asks_is(x, self.training)


class OwnLSTM(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * 2.0 if self.training else x)[0]


def untracked(norm: Any) -> nn.Module:
    norm.running_mean.fill_(3.0)
    norm.track_running_stats = False
    return norm.double()


NUMBERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a quotient": lambda _, x: x * (1.0 / x.shape[0]),
    "a product": lambda _, x: x * (x.shape[0] * 0.5),
    "an int": lambda _, x: x * int(x.shape[0]),
    "its negative": lambda _, x: x * -x.shape[0],
    "its logarithm": lambda _, x: x * math.log(x.shape[0]),
    "a remainder": lambda _, x: x * divmod(x.shape[0], 4)[1],
    "a loop": lambda _, x: x * sum(1 for _ in range(x.shape[0])),
    "a name": lambda _, x: x * float(str(x.shape[0])),
    "all elements": lambda _, x: x * x.shape.numel(),
    "a key": lambda _, x: x * {B: 2.0, R: 2.0}.get(x.shape[0], 1.0),
    "bits": lambda _, x: x * (x.shape[0] & 3),
    "caught": swallowed,
    "a tensor of it": lambda _, x: x * torch.tensor(float(len(x))),
    "a slice by it": lambda _, x: x + x.repeat(1, 9)[:, : len(x)].sum(1, keepdim=True),
    "a factor of a sum": lambda _, x: torch.addmm(x, x, torch.ones(4, 4, dtype=x.dtype), beta=x.shape[0]),
    "a size of another": lambda _, x: x * 2.0 if x.is_same_size(torch.ones(B, 4)) else x,
}


def refuses(module: nn.Module, *shape: int, rest: int = R) -> None:
    before = copy.deepcopy(module.state_dict())
    modes = [layer.training for layer in module.modules()]
    torch.manual_seed(0)
    generator = torch.get_rng_state()
    with pytest.raises(Unsplit):
        both(module, rows(B, *shape), rows(rest, *shape, seed=1))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert [layer.training for layer in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("kind", [*NUMBERS])
def test_the_number_of_rows(kind: str) -> None:
    refuses(of(NUMBERS[kind]), 4)


MODES: dict[str, Callable[[], nn.Module]] = {
    "a layer": lambda: of(lambda s, x: (s.a if s.training else s.b)(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
    "a parameter": lambda: of(lambda s, x: x * (s.a if s.training else s.b), a=table(4), b=table(4)),
    "a constant": lambda: of(lambda s, x: x * torch.tensor(2.0 if s.training else 1.0)),
    "the order": lambda: of(lambda s, x: (lambda a, b: a - b if s.training else b - a)(x * 2.0, x * 3.0)),
    "what it returns": lambda: of(lambda s, x: (x.tanh(), x.exp())[s.training == 1]),
    "an index": lambda: of(lambda s, x: x + x[:, 0 if s.training else 1, None]),
    "statistics": lambda: of(statistics, a=rows(4), b=rows(4).exp(), c=rows(4) + 2.0, d=rows(4).exp() * 3.0),
    "its name": lambda: of(lambda s, x: x * 2.0 if str(s.training) == "True" else x),
    "whether it is": AsksIs,
    "whether it is, in a function": HandsOn,
    "whether it is, in a function that it is given": lambda: Hands(asks_is),
    "its type, in a function that it is given": lambda: Hands(asks_type),
}


@pytest.mark.parametrize("kind", [*MODES])
def test_the_mode(kind: str) -> None:
    refuses(MODES[kind](), 4)


def test_layers_that_read_their_mode() -> None:
    refuses(OwnLSTM(4, 4, batch_first=True).double(), 5, 4)
    refuses(untracked(nn.BatchNorm1d(4)), 4)
    refuses(untracked(nn.InstanceNorm1d(4, track_running_stats=True)), 4, 5)


FUNCTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "twice": (lambda: of(lambda _, x: x + F.linear(x, x).sum(-1, keepdim=True)), (4,)),
    "cat by axis": (lambda: of(lambda _, x: torch.cat([x.T, x.T * 2.0], axis=1).T), (4,)),  # type: ignore[call-overload]
    "a number of its own": (lambda: of(lambda _, x: x.view(12, -1).sum(1)), (8,)),
    "sizes exchanged": (lambda: of(lambda _, x: x.view(13, x.shape[0], 2).cumsum(1).view(x.shape[0], -1)), (13, 2)),
    "other rows": (lambda: of(lambda _, x: x.view(-1, 2).gather(1, (x[:, :2] > 0.0).long())), (4,)),
    "a weight of rows": (lambda: of(lambda _, x: F.bilinear(x, x, x.view(-1, 1, 1).expand(-1, 4, 4))), (4,)),
    "queries without rows": (
        lambda: of(
            lambda s, x: F.scaled_dot_product_attention(s.q, *[x[:, None]] * 2, dropout_p=0.3 if s.training else 0.0),
            q=table(1, 1, 3, 4),
        ),
        (5, 4),
    ),
    "a median": (lambda: of(lambda _, x: x[:, :1, None].expand(-1, -1, 3).median(2, keepdim=True)[0]), (2,)),
    "a norm of a table": (lambda: of(lambda s, x: x + s.n(s.t).square()[0], n=nn.BatchNorm1d(4), t=table(5, 4)), (4,)),
    "a dropout of a table": (
        lambda: of(lambda s, x: x + s.n(s.t).sum((0, 2, 3)), n=nn.Dropout2d(), t=table(2, 4, 3, 3)),
        (4,),
    ),
    "attention of a table": (
        lambda: of(
            lambda s, x: x + s.n(*[s.t] * 3)[0].sum((0, 1)), n=nn.MultiheadAttention(4, 2, 0.3), t=table(5, 2, 4)
        ),
        (4,),
    ),
    "statistics before": (lambda: of(lambda s, x: s.n(x - s.n.running_mean), n=nn.BatchNorm1d(4)), (4,)),
    "statistics after": (lambda: of(lambda s, x: s.n(x) - s.n.running_mean, n=nn.BatchNorm1d(4)), (4,)),
    "a count before": (lambda: of(lambda s, x: s.n(x * s.n.num_batches_tracked), n=nn.BatchNorm1d(4)), (4,)),
    "written by another name": (lambda: of(written, count=torch.zeros(4)), (4,)),
    "written in place": (lambda: of(lambda s, x: x * F.relu(s.t, inplace=True), t=rows(4)), (4,)),
    "a slice of a table": (lambda: of(lambda s, x: x + s.t[: x.shape[0]].mean(0), t=table(30, 4)), (4,)),
    "vmap": (lambda: of(lambda _, x: x - torch.vmap(lambda v: v.mean(), in_dims=1)(x)), (4,)),
    "a parameter of rows": (lambda: of(lambda _, x: x - nn.Parameter(x.detach()).mean(0)), (4,)),
    "into eval mode": (lambda: of(lambda s, x: (s.n.eval(), x)[1], n=nn.Dropout()), (4,)),
    "into training mode": (lambda: of(lambda s, x: (s.n.train(), x)[1], n=nn.Dropout().eval()), (4,)),
    "a leaf": (lambda: of(lambda _, x: x.requires_grad_() * 2.0), (4,)),
}


@pytest.mark.parametrize("kind", [*FUNCTIONS])
def test_functions(kind: str) -> None:
    make, shape = FUNCTIONS[kind]
    refuses(make(), *shape, rest=B if kind == "a number of its own" else R)


def test_generators_that_a_module_keeps() -> None:
    """They draw again what they had drawn."""
    for generator in (np.random.default_rng(0), np.random.RandomState(0), random.Random(0)):
        expected = copy.deepcopy(generator).random()
        refuses(of(lambda s, x: x * s.generator.random(), generator=generator), 4)
        assert generator.random() == expected


def test_a_single_row_that_is_squeezed() -> None:
    refuses(of(lambda _, x: x.squeeze()), 4, rest=1)


def test_a_group_of_one_value() -> None:
    refuses(nn.GroupNorm(1, 1).double(), 1, rest=1)


def test_a_look_that_fails() -> None:
    """Of one row two are made, which an encoder need not stand."""
    module = of(lambda s, x: x.reshape(len(x), -1) if len(x) in (1, B) else x.reshape(-1, 5))
    given = rows(B, 4)
    with pytest.raises(Unsplit, match="a look at it raises RuntimeError"):
        what_runs(module, ((given,), {}), {id(given): rows(1, 4, seed=1)}, B, 1)


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 0, 1)])
def test_elements_in_another_order_in_memory(order: tuple[int, ...]) -> None:
    """A dropout draws for them in that order: of an input, after a dropout, and with rows in another dimension."""
    back = [order.index(d) for d in range(3)]
    module = of(lambda s, x: s.b(s.a(x).permute(2, 1, 0)).permute(2, 1, 0), a=nn.Dropout(0.3), b=nn.Dropout(0.4))
    train, rest = (rows(*[(n, 4, 5)[d] for d in order], seed=n).permute(back) for n in (B, R))
    torch.manual_seed(0)
    expected = two_passes(module, train, rest)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(torch.cat(both(module, train, rest)), expected)
    assert torch.equal(torch.get_rng_state(), after)


class Borrowing(nn.Module):
    """Normalises features of the other modality by the encoder's norm, before the encoder is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))
        self.visual_net, self.head = nn.Linear(4, 8), nn.Linear(16, 3)
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        other = self.audio_net[1](self.visual_net(visual))
        return self.head(torch.cat([self.audio_net(audio), other], 1))


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_an_earlier_call_of_a_norm_has_its_backward(masked: Any) -> None:
    inputs = {name: torch.randn(6, n, dtype=torch.float64) for name, n in {"audio": 5, "visual": 4}.items()}
    encoders = {"audio": "audio_net", "visual": "visual_net"}
    target, found = torch.tensor([0, 1, 2, 0, 1, 2]), []
    passes: list[Any] = ["one", "two"]
    for how in passes:
        model = agm.AGM(Borrowing(), tuple(inputs), encoders=encoders, masked=masked, passes=how)
        F.cross_entropy(model(**inputs, target=target), target).backward()
        found.append([p.grad for p in model.parameters()] + list(model.module.buffers()))
    torch.testing.assert_close(*found)
