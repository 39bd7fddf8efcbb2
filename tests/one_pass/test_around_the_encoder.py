"""Encoders whose code looks at modules around them: at their modes, at what they keep, and writes to that."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

NAMES = ("audio", "visual")
PATHS = {"audio": "encoders.audio", "visual": "encoders.visual"}
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])


class Looking(nn.Module):
    """Does something with a module that is none of its own."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], root: nn.Module, extra: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.extra = extra
        self.function = function
        self.root = [root]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.root[0], self.extra(self.linear(x)))


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor], extra: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.beside = nn.ModuleList([nn.LSTM(2, 2, 2, dropout=0.1), nn.Dropout(0.5)])
        own = {name: Looking(function, self, extra()) for name in NAMES}
        self.encoders = nn.ModuleDict(own)
        self.head = nn.Linear(12, 3)
        self.log: list[Tensor] = []
        self.last: Tensor | None = None
        self.steps = 0
        self.random = random.Random(3)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})

    def fuse(self, features: dict[str, Tensor]) -> Any:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))


def scaled(root: Any, x: Tensor) -> Tensor:
    return x * (2.0 if root.training else 1.0)


def of_a_sibling(root: Any, x: Tensor) -> Tensor:
    return x * 3.0 if root.beside[0].training else x


def of_the_head(root: Any, x: Tensor) -> Tensor:
    return x + float(root.head.training)


class AskedExactly(Looking):
    def forward(self, x: Tensor) -> Tensor:
        return self.extra(self.linear(x)) * (2.0 if self.root[0].training is True else 1.0)


def dropped(root: Any, x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.4, root.training)


def dropped_beside(root: Any, x: Tensor) -> Tensor:
    return root.beside[1](x)  # type: ignore[no-any-return]


def kept(root: Any, x: Tensor) -> Tensor:
    root.last = x.detach()
    return x


def logged(root: Any, x: Tensor) -> Tensor:
    root.log.append(x.detach())
    return x


def drawn(root: Any, x: Tensor) -> Tensor:
    return x * root.random.random() if root.training else x


LOOKS = (scaled, of_a_sibling, of_the_head, dropped, dropped_beside, kept, logged, drawn)
EXTRAS = (nn.Identity, lambda: nn.BatchNorm1d(6), lambda: nn.Dropout(0.3))


def left(network: Any) -> list[Any]:
    return [network.last, *network.log, *network.buffers()]


def stepped(network: nn.Module, **options: Any) -> tuple[list[Tensor | None], list[Any], agm.AGM]:
    network = copy.deepcopy(network)
    model = agm.AGM(network, NAMES, **options)
    for step in range(3):
        torch.manual_seed(step)
        x = {name: torch.randn(6, 5, dtype=torch.float64) for name in NAMES}
        nn.functional.cross_entropy(model(**x, target=TARGET), TARGET).backward()
    return [parameter.grad for parameter in network.parameters()], left(network), model


@pytest.mark.parametrize("encoders", [None, PATHS], ids=["protocol", "paths"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
def test_an_encoder_that_looks_around_is_what_two_passes_are(
    look: Callable[[Any, Tensor], Tensor], extra: Callable[[], nn.Module], encoders: dict[str, str] | None
) -> None:
    """With batch norm the automatic choice is two passes on a CPU, so that "one" is asked for where it is allowed."""
    network = Net(look, extra).double()
    expected = stepped(network, encoders=encoders, passes="two")
    torch.testing.assert_close(stepped(network, encoders=encoders)[:2], expected[:2], rtol=1e-9, atol=1e-12)
    try:
        found = stepped(network, encoders=encoders, passes="one")
    except ValueError:
        return  # it is refused
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-9, atol=1e-12)


def test_dropouts_by_the_mode_of_a_parent_still_take_one_pass() -> None:
    found = stepped(Net(dropped, nn.Identity).double(), encoders=PATHS, passes="one")
    assert found[2].plan().count("encoder `audio`", 6) == 13
    assert len(found[2].plan().lines) == 4


def test_a_parent_asked_with_is_takes_two_passes() -> None:
    network: Any = Net(scaled, nn.Identity)
    for name in NAMES:
        network.encoders[name] = AskedExactly(scaled, network, nn.Identity())
    expected = stepped(network.double(), encoders=PATHS, passes="two")
    torch.testing.assert_close(stepped(network, encoders=PATHS)[:2], expected[:2], rtol=1e-9, atol=1e-12)


class OwnMode(nn.Identity):
    @property
    def training(self) -> bool:  # type: ignore[override]
        return self.__dict__.get("mode", True)  # type: ignore[no-any-return]

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["mode"] = mode


def test_a_sibling_with_a_mode_of_its_own_ends_one_pass() -> None:
    network: Any = Net(lambda root, x: x * (2.0 if root.own.training else 1.0), nn.Identity)
    network.own = OwnMode()
    assert agm.verify(agm.AGM(network.double(), NAMES, encoders=PATHS), inputs(), TARGET).ok
    with pytest.raises(ValueError, match="OwnMode"):
        stepped(network, encoders=PATHS, passes="one")


def test_a_compiled_or_scripted_sibling_does_not_end_one_pass() -> None:
    network: Any = Net(lambda root, x: x, nn.Identity)
    network.compiled = torch.compile(nn.Linear(2, 2))
    network.scripted = torch.jit.script(nn.Linear(2, 2))
    model = agm.AGM(network.double(), NAMES, encoders=PATHS, passes="one")
    model(**inputs(), target=TARGET)
    assert model.plan().count("encoder `audio`", 6) == 7


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(6, 5, dtype=torch.float64) for name in NAMES}


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("look", [scaled, of_a_sibling, kept], ids=lambda look: look.__name__)
def test_verify_agrees(look: Callable[[Any, Tensor], Tensor], masked: Any) -> None:
    model = agm.AGM(Net(look, nn.Identity).double(), NAMES, encoders=PATHS, masked=masked)
    model(**inputs(), target=TARGET)
    assert agm.verify(model, inputs(), TARGET).ok
