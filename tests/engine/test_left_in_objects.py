"""What forward changes inside of objects, and in generators of random numbers, is what one joint pass leaves there."""

import argparse
import copy
import random
import threading
from collections import Counter, OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import agm

from .plain_network import CLASSES, NAMES, OPTIONS, TARGET, Net, inputs


class Attributes(dict[str, Any]):
    """As many configurations are: keys are attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__

    def clear(self) -> None:
        raise AssertionError("its own methods are nobody else's business")


class Log(list[Any]):
    pass


@dataclass(slots=True)
class Slots:
    steps: int = 0
    last: Any = None


@dataclass
class Nested:
    inner: Slots = field(default_factory=Slots)
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))


class Functor:
    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, features: Tensor) -> None:
        self.total += float(features.detach().sum())


def counts(x: Any, _: Tensor) -> None:
    x.steps = getattr(x, "steps", 0) + 1


def keys(x: Any, features: Tensor) -> None:
    x["steps"] = x.get("steps", 0) + 1
    x["last"] = features


def grows(x: Any, features: Tensor) -> None:
    x.append(features.detach().mean())


def adds(x: Any, _: Tensor) -> None:
    x[0] += 1


def nested(x: Any, features: Tensor) -> None:
    x.inner.steps += 1
    x.inner.last = features
    x.mean.add_(features.detach().mean())


def used(x: OrderedDict[int, int], _: Tensor) -> None:
    x.move_to_end(next(iter(x)))


HOLDERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], None]]] = {
    "a namespace": (SimpleNamespace, counts),
    "a namespace of arguments": (argparse.Namespace, counts),
    "a counter": (Counter, lambda x, _: x.update(["batch"])),
    "a dict of attributes": (Attributes, keys),
    "a user's dict": (UserDict, keys),
    "a list of the user's own": (Log, grows),
    "an object with slots": (Slots, counts),
    "objects in an object": (Nested, nested),
    "an object that is called": (Functor, lambda x, features: x(features)),
    "an array": (lambda: np.zeros(3), adds),
    "bytes": (lambda: bytearray(b"abc"), adds),
    "an order": (lambda: OrderedDict({1: 1, 2: 2, 3: 3}), used),
}
GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (lambda: None, lambda _: torch.rand(3)),
    "torch's own": (lambda: torch.Generator().manual_seed(3), lambda x: torch.rand(3, generator=x)),
    "torch, in place": (lambda: None, lambda _: torch.empty(3).normal_()),
    "numpy": (lambda: None, lambda _: np.random.rand()),
    "numpy's own": (lambda: np.random.default_rng(3), lambda x: x.random()),
    "numpy's own of old": (lambda: np.random.RandomState(3), lambda x: x.rand()),
    "python": (lambda: None, lambda _: random.random()),
    "python's own": (lambda: random.Random(3), lambda x: x.random()),
}


class Holding(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        make, self.change = HOLDERS[kind]
        self.held = make()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        hidden = self.hidden(audio, visual)
        self.change(self.held, hidden)
        return self.head(hidden)


class Drawing(Net):
    """Draws whether it trains or not, as an encoder with a layer drop of its own does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make, self.draw = GENERATORS[kind]
        self.source = make()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        drawn = self.draw(self.source)
        return self.head(self.hidden(audio, visual)) * (1.0 + float(torch.as_tensor(drawn).sum()) * self.training)


class Noisy(nn.Module):
    """An encoder that draws where it trains alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)
        make, self.draw = GENERATORS[kind]
        self.source = make()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x).tanh()
        return x * (1.0 + float(torch.as_tensor(self.draw(self.source)).sum())) if self.training else x


class DrawingInside(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.audio_net = Noisy(kind).double()  # type: ignore[assignment]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(self.hidden(audio, visual))


def told(value: Any) -> Any:
    """What can be compared, of whatever holds something."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.detach().double().flatten().tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (dict, UserDict)):
        return [(key, told(x)) for key, x in value.items()]
    if isinstance(value, (list, tuple)):
        return [told(x) for x in value]
    if hasattr(value, "__slots__") or hasattr(value, "__dict__"):
        names = [*getattr(value, "__slots__", ()), *getattr(value, "__dict__", ())]
        return [(name, told(getattr(value, name))) for name in names]
    return value


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", HOLDERS)
def test_objects_hold_what_the_joint_pass_left(kind: str, options: dict[str, Any]) -> None:
    net, plain = Holding(kind), Holding(kind)
    model = agm.AGM(net, NAMES, **options)
    for _ in range(3):
        held = net.held
        model(**inputs(), target=TARGET).sum().backward()
        plain(**inputs()).sum().backward()
        assert net.held is held
        assert _near(told(net.held), told(plain.held))


def _near(left: Any, right: Any) -> bool:
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_near, left, right))
    return left == pytest.approx(right, rel=1e-9, abs=1e-12) if isinstance(left, float) else bool(left == right)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("network", [Drawing, DrawingInside])
@pytest.mark.parametrize("kind", GENERATORS)
def test_random_numbers_are_those_of_the_joint_pass(
    kind: str, network: Callable[[str], nn.Module], options: dict[str, Any]
) -> None:
    def seed() -> None:
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)

    def run(step: Callable[[], Tensor]) -> list[Any]:
        seed()
        outputs = [step().detach() for _ in range(4)]
        return [*outputs, torch.rand(2, dtype=torch.float64), torch.tensor([random.random(), np.random.rand()])]

    net = network(kind)
    plain = network(kind)
    model = agm.AGM(net, NAMES, **options)
    own = run(lambda: model(**inputs(), target=TARGET))
    for left, right in zip(own, run(lambda: plain(**inputs())), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


class Registering(Net):
    """Registers something where nothing was, in a pass that is not the joint one."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.part = nn.Identity()
        self.part.forward = self.registered  # type: ignore[method-assign]

    def registered(self, x: Tensor) -> Tensor:
        if not self.training and self.what == "parameter":
            self.part.register_parameter("first", nn.Parameter(torch.ones(2)))
        elif not self.training and self.what == "buffer":
            self.part.register_buffer("first", torch.ones(2))
        elif not self.training:
            self.part.add_module("first", nn.Linear(2, 2))
        return x

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(self.part(self.hidden(audio, visual)))


@pytest.mark.parametrize("what", ["parameter", "buffer", "module"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_first_that_a_masked_pass_registers_goes_again(options: dict[str, Any], what: str) -> None:
    network = Registering(what)
    model = agm.AGM(network, NAMES, **options)
    for _ in range(2):
        model(**inputs(), target=TARGET)
    assert not [name for name in (*network.state_dict(), *dict(network.named_modules())) if "first" in name]


class Teaching(Net):
    """Makes itself a teacher, a copy of an encoder or of all of it, in its first forward or in a later one."""

    def __init__(self, whole: bool, first: int) -> None:
        super().__init__()
        self.whole, self.first, self.calls = whole, first, 0
        self.teacher: list[nn.Module] = []

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls >= self.first and not self.teacher:
            self.teacher.append(copy.deepcopy(self if self.whole else self.audio_net))
        logits = self.logits(audio, visual)
        for teacher in self.teacher:
            for own in teacher.parameters():
                own.requires_grad_(False)
            logits = logits + (Net.logits(teacher, audio, visual) if self.whole else teacher(audio)[:, :CLASSES])
        return logits


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "network"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with a thread"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_copy_that_forward_makes_has_nothing_that_stands_in(
    options: dict[str, Any], alone: bool, whole: bool, first: int
) -> None:
    network, plain = Teaching(whole, first), Teaching(whole, first)
    model = agm.AGM(network, NAMES, **options)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    if not alone:
        thread.start()
    try:
        for step in range(3):
            given = inputs(step)
            torch.testing.assert_close(model(**given, target=TARGET), plain(**given), rtol=0, atol=1e-12)
    finally:
        done.set()
        if not alone:
            thread.join()
    for module in (*network.modules(), *network.teacher[0].modules()):
        assert not {"forward", "__deepcopy__"} & vars(module).keys()
    torch.testing.assert_close(network.teacher[0].state_dict(), plain.teacher[0].state_dict())
    with torch.no_grad():  # it is a network of its own
        for own in network.teacher[0].parameters():
            own.zero_()
    assert any(bool(own.any()) for own in network.audio_net.parameters())
    assert agm.verify(model, inputs(), TARGET).ok
