"""What methods, functions and objects in attributes change is what one joint pass changes, and verify looks there."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .plain_network import ENCODERS, NAMES, OPTIONS, TARGET


class Meter:
    def __init__(self) -> None:
        self.steps = 0
        self.sizes: list[int] = []

    def add(self, features: Tensor) -> None:
        self.steps += 1
        self.sizes.append(features.shape[0])


def of_a_meter() -> tuple[Any, Callable[[], Any]]:
    meter = Meter()
    return meter.add, lambda: (meter.steps, meter.sizes)


def of_a_function() -> tuple[Any, Callable[[], Any]]:
    steps, sizes = 0, []

    def add(features: Tensor) -> None:
        nonlocal steps
        steps += 1
        sizes.append(features.shape[0])

    return add, lambda: (steps, sizes)


def of_a_partial() -> tuple[Any, Callable[[], Any]]:
    meter = Meter()
    return functools.partial(Meter.add, meter), lambda: (meter.steps, meter.sizes)


def of_a_list() -> tuple[Any, Callable[[], Any]]:
    sizes: list[Any] = []
    return sizes.append, lambda: (len(sizes), [len(x) for x in sizes])


def of_what_a_lambda_calls() -> tuple[Any, Callable[[], Any]]:
    add, read = of_a_function()
    return (lambda features: add(features)), read


CALLED = [of_a_meter, of_a_function, of_a_partial, of_a_list, of_what_a_lambda_calls]


class Encoder(nn.Module):
    def __init__(self, called: Any) -> None:
        super().__init__()
        self.linear, self.called = nn.Linear(5, 6), called

    def forward(self, x: Tensor) -> Tensor:
        features = self.linear(x)
        if self.called is not None:
            self.called(features)
        return features  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, own: Any, audio: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.called = own
        self.audio_net, self.visual_net, self.head = Encoder(audio), Encoder(None), nn.Linear(12, 4)

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        features = torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)
        if self.called is not None:
            self.called(features)
        return self.head(features)


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(6, 5, dtype=torch.float64) for name in NAMES}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("in_encoder", [False, True])
@pytest.mark.parametrize("make", CALLED)
def test_what_is_called_has_seen_one_pass_a_step(make: Any, in_encoder: bool, options: dict[str, Any]) -> None:
    called, read = make()
    model = agm.AGM(Net(*((None, called) if in_encoder else (called, None))).double(), NAMES, **options)
    for step in range(3):
        model(**inputs(), target=TARGET)
        assert read() == (step + 1, [6] * (step + 1))
    result = agm.verify(model, inputs(), TARGET)
    assert result.ok, str(result)
    assert read() == (3, [6] * 3)


class Inner:
    def __init__(self) -> None:
        self.steps, self.sum, self.seen = 0, 0.0, torch.zeros(())


class Outer:
    """An object of another package than the network's, which is looked at, and not what is in it."""

    def __init__(self) -> None:
        self.inner = Inner()

    def __call__(self, features: Tensor) -> None:
        self.inner.steps += 1
        self.inner.sum += 1.0


Outer.__module__ = Inner.__module__ = "elsewhere.meters"


def test_verify_names_what_masked_passes_change_and_nobody_puts_back() -> None:
    model = agm.AGM(Net(Outer(), None).double(), NAMES)
    result = agm.verify(model, inputs(), TARGET)
    assert not result.ok
    assert [name for name, difference in result.left.items() if difference] == ["called.inner.steps"]


def test_a_function_without_variables_and_modules_around_one_are_left_alone() -> None:
    network = Net(None, None).double()
    plain: Any = network.head.forward
    network.head.forward = lambda x: plain(x) * 1.0  # type: ignore[method-assign]
    network.audio_net.called = len
    model = agm.AGM(network, NAMES, encoders=ENCODERS, passes="one")
    for _ in range(2):
        model(**inputs(), target=TARGET).sum().backward()
    assert agm.verify(model, inputs(), TARGET).ok
