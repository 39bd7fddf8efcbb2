"""Passes of one subset each in steps that are not alike: other orders of calls, other numbers, an empty batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .attending_networks import MET, NAMES, OPTIONS, TARGET, Network, Tower, batch


class Turns(Tower):
    """One encoder of all, in another order in every step."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def features(self, **inputs: Tensor) -> list[Tensor]:
        self.steps += self.training
        first = self.steps % 3
        names = [*NAMES[first:], *NAMES[:first]]
        found = {
            name: self.nets["audio"](inputs[name] * self.scale if self.scale != 1 else inputs[name]) for name in names
        }
        return [found[name] for name in NAMES]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_tower_may_take_them_in_another_order_in_every_step(scale: float, options: dict[str, Any]) -> None:
    network = Turns()
    network.scale = scale
    model = agm.AGM(network, NAMES, alpha=2.0, encoders=network.paths, **options)
    for _ in range(4):
        model(**batch(), target=TARGET)
        assert MET in str(model.plan())
        result = agm.verify(model, batch(), TARGET)
        assert result.ok, str(result)


class Frames(Tower):
    """As many calls of each as there are frames."""

    def features(self, **inputs: Tensor) -> list[Tensor]:
        frames = [[self.nets["audio"](x[:, index]) for index in range(x.shape[1])] for x in inputs.values()]
        return [torch.stack(one).mean(0) for one in frames]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_many_calls_as_a_batch_has_frames(options: dict[str, Any]) -> None:
    network = Frames()
    model = agm.AGM(network, NAMES, alpha=2.0, encoders=network.paths, **options)
    generator = torch.Generator().manual_seed(1)
    for count in (3, 4, 2):
        given = {name: torch.randn(6, count, 5, generator=generator, dtype=torch.float64) for name in NAMES}
        model(**given, target=TARGET)
        assert MET in str(model.plan())
        result = agm.verify(model, given, TARGET)
        assert result.ok, str(result)


@pytest.mark.parametrize("kind", [Network, Tower])
@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_a_batch_of_none_leaves_what_is_known(kind: type[Network], options: dict[str, Any]) -> None:
    network = kind()
    for net in network.nets.values():
        net[1] = nn.Identity()  # a norm in training mode takes no empty batch
    model = agm.AGM(network, NAMES, encoders=network.paths, **options)
    for size in (6, 0, 6):
        given = {name: x[:size] for name, x in batch().items()}
        model(**given, target=TARGET[:size])
    result = agm.verify(model, batch(), TARGET)
    assert result.ok, str(result)


def test_the_advice_of_a_plan_can_be_followed() -> None:
    advice = "Leave `encoders` out: they save nothing here"
    for options in OPTIONS:
        network = Network()
        model = agm.AGM(network, NAMES, encoders=network.paths, **options)
        model(**batch(), target=TARGET)
        assert (advice in str(model.plan())) == (options == {})
    model = agm.AGM(Network(), NAMES)
    model(**batch(), target=TARGET)
    assert "Name them" not in str(model.plan())
