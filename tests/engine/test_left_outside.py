"""What forward changes beside the attributes of its own modules is what one joint pass leaves there."""

import queue
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import agm

from .plain_network import ENCODERS, NAMES, OPTIONS, TARGET, Net, inputs


class Teacher(Net):
    """Has a teacher that no optimizer is to see."""

    def __init__(self, hide: Callable[["Teacher", nn.Module], object]) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).double()
        nn.init.zeros_(layers[0].weight)
        hide(self, layers)

    @property
    def teacher(self) -> Any:
        held = vars(self)["held"]
        return held if isinstance(held, nn.Module) else held["teacher"] if isinstance(held, dict) else held[0]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher[0].weight.lerp_(self.audio_net[0].weight, 0.5)
            self.teacher(audio)
            self.teacher.seen = len(audio)
        return self.logits(audio, visual)


HIDDEN: dict[str, Callable[[nn.Module, nn.Module], object]] = {
    "a list": lambda net, teacher: setattr(net, "held", [teacher]),
    "a tuple": lambda net, teacher: setattr(net, "held", (teacher,)),
    "a dict": lambda net, teacher: setattr(net, "held", {"teacher": teacher}),
    "object.__setattr__": lambda net, teacher: object.__setattr__(net, "held", teacher),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("where", HIDDEN)
def test_modules_that_are_no_parameters(where: str, options: dict[str, Any]) -> None:
    network = Teacher(HIDDEN[where])
    model = agm.AGM(network, NAMES, **options)
    model(**inputs(), target=TARGET)
    linear, norm = network.teacher
    torch.testing.assert_close(linear.weight, 0.5 * network.audio_net[0].weight, rtol=0, atol=0)
    assert norm.num_batches_tracked == 1
    assert network.teacher.seen == len(TARGET)
    expected = nn.BatchNorm1d(5).double()
    expected(linear(inputs()["audio"]))
    torch.testing.assert_close(norm.running_mean, expected.running_mean, rtol=0, atol=1e-15)
    assert agm.verify(model, inputs(), TARGET).ok


def test_a_wrapper_of_the_network_is_not_looked_into() -> None:
    """Lightning's module and the model itself hold the network, and go on with what they note meanwhile."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = Inner(), 0
            self.net.outer = [self]

    class Inner(Net):
        outer: list[Outer]

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            self.outer[0].calls += 1
            return self.logits(audio, visual)

    outer = Outer()
    agm.AGM(outer.net, NAMES, encoders=ENCODERS)(**inputs(), target=TARGET)
    assert outer.calls > 1


class Layers(Net):
    """Stores what belongs to a layer of torch's where it belongs."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net.calls = 0
        self.visual_net.history = []

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        hidden = self.hidden(audio, visual)
        self.audio_net.calls += 1
        self.visual_net.history.append(len(hidden))
        self.head.auxiliary = hidden.square().mean()
        return self.head(hidden)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attributes_of_layers_of_torchs(options: dict[str, Any]) -> None:
    network, plain = Layers(), Layers()
    plain(**inputs())
    model = agm.AGM(network, NAMES, **options)
    model(**inputs(), target=TARGET)
    assert network.audio_net.calls == 1
    assert network.visual_net.history == [len(TARGET)]
    assert torch.equal(network.head.auxiliary, plain.head.auxiliary)
    assert agm.verify(model, inputs(), TARGET).ok


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attributes_of_classes_and_queues(options: dict[str, Any]) -> None:
    class Base(Net):
        calls = 0

    class Counting(Base):
        history: ClassVar[list[int]] = []
        total = torch.zeros(1, dtype=torch.float64)

        def __init__(self) -> None:
            super().__init__()
            self.waiting: queue.Queue[int] = queue.Queue()

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            Base.calls += 1
            Counting.history.append(len(audio))
            Counting.total.add_(1)
            Counting.last = len(audio)
            self.waiting.put(len(audio))
            return self.logits(audio, visual)

    network = Counting()
    agm.AGM(network, NAMES, **options)(**inputs(), target=TARGET)
    batch = len(TARGET)
    assert (Base.calls, Counting.history, float(Counting.total), Counting.last) == (1, [batch], 1.0, batch)
    assert "calls" not in vars(Counting)
    assert list(network.waiting.queue) == [batch]


class Large(Net):
    def __init__(self) -> None:
        super().__init__()
        self.queue = deque([0.0] * 4096, maxlen=4096)
        self.seen = dict.fromkeys(range(5000), 0)
        self.bank = np.full((4000, 8), np.nan)
        self.place = 0

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits = self.logits(audio, visual)
        self.queue.extend(logits.detach()[:, 0].tolist())
        self.seen[3] += len(audio)
        self.bank[self.place : self.place + len(audio)] = 1.0
        self.place += len(audio)
        return logits


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_large_containers(options: dict[str, Any]) -> None:
    network, batch = Large(), len(TARGET)
    agm.AGM(network, NAMES, **options)(**inputs(), target=TARGET)
    assert sum(x != 0 for x in network.queue) == batch
    assert network.seen[3] == batch
    assert int(np.isfinite(network.bank).any(1).sum()) == batch


class Drawing(Net):
    """Skips a layer at random, after some steps, by the generators of Python and NumPy."""

    def __init__(self, first: int, derives: bool) -> None:
        super().__init__()
        self.first, self.derives, self.steps = first, derives, 0

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        self.steps += self.training
        if self.derives:  # encoders are given what forward computes: the first masked pass is broken off
            audio, visual = audio * 1.0, visual * 1.0
        hidden = self.hidden(audio, visual)
        if self.steps > self.first and random.random() + np.random.rand() < 1 and self.training:
            hidden = hidden * 2
        if self.steps > self.first and np.random.randn() > 0 and self.training:  # of which NumPy keeps a second one
            hidden = hidden * 2
        return self.head(hidden)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("first", "derives"), [(0, False), (0, True), (2, False)])
def test_generators_go_on_as_after_a_joint_pass(first: int, derives: bool, options: dict[str, Any]) -> None:
    network, plain = Drawing(first, derives), Drawing(first, derives)
    model = agm.AGM(network, NAMES, **options)
    for seed in range(5):
        random.seed(seed)
        np.random.seed(seed)
        for _ in range(3):
            plain(**inputs())
        expected = random.random(), np.random.rand(), np.random.randn()
        random.seed(seed)
        np.random.seed(seed)
        for _ in range(3):
            model(**inputs(), target=TARGET)
        assert (random.random(), np.random.rand(), np.random.randn()) == expected


DRAWN: list[float] = []  # not in the network's reach, where a step would leave what the joint pass has put into it


class DrawnElsewhere(Net):
    """Another thread draws while this network runs, for masked rows too."""

    def __init__(self, draw: Callable[[], float], other: ThreadPoolExecutor) -> None:
        super().__init__()
        self.draw, self.other = draw, other

    def elsewhere(self, *_: Any) -> None:
        DRAWN.append(self.other.submit(self.draw).result())

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        self.elsewhere()
        return self.logits(audio, visual)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: np.random.rand()], ids=["python", "numpy"])
def test_what_another_thread_draws_is_not_drawn_again(draw: Callable[[], float], options: dict[str, Any]) -> None:
    with ThreadPoolExecutor(1) as other:
        network = DrawnElsewhere(draw, other)
        model = agm.AGM(network, NAMES, **options)
        model.modulator.register_forward_hook(network.elsewhere)  # between the masked passes and the end of a step
        for step in range(6):
            if step == 1:  # the first one has shown who draws
                DRAWN.clear()
            model(**inputs(), target=TARGET)
    assert len(DRAWN) >= 15
    assert len(DRAWN) == len(set(DRAWN))
