"""Encoders whose features are memory of their input, or of one another, to which forward writes in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm

NAMES = ("audio", "visual")
ENCODERS = {"audio": "audio_net", "visual": "visual_net"}
TARGET = torch.tensor([0, 1, 2, 0, 1])


class Same(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


SAME: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "flatten": nn.Flatten,
    "a chain": lambda: nn.Sequential(nn.Identity(), nn.Flatten()),
    "a view": lambda: Same(lambda x: x.view(len(x), -1)),
    "a slice": lambda: Same(lambda x: x[:, 1:]),
    "detached": lambda: Same(lambda x: x.detach()),
}


class Net(nn.Module):
    def __init__(self, audio_net: nn.Module, writes: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net, self.writes = audio_net, writes
        self.visual_net = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.head = nn.Linear(6 + 5, 3)
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        features = self.audio_net(audio)
        if self.writes == "features":
            features.mul_(3.0)
        elif self.writes == "input":
            audio.mul_(3.0)
        wide = F.pad(features[:, :4], (0, 4 - features[:, :4].shape[1])) * audio[:, :4]
        return self.head(torch.cat([wide, audio[:, 4:], self.visual_net(visual)], 1))


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = {"audio": 5, "visual": 4}
    return {name: torch.randn(5, n, generator=generator, dtype=torch.float64) for name, n in sizes.items()}


def by_definition(net: nn.Module, coefficients: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients of separate passes, of a network that does not depend on the mode."""
    zeros = {name: torch.zeros_like(x) for name, x in inputs().items()}
    both = net(**inputs())
    audio = net(**{**inputs(), "visual": zeros["visual"]})
    visual = net(**{**inputs(), "audio": zeros["audio"]})
    (gradient,) = torch.autograd.grad(F.cross_entropy(both, TARGET), both, retain_graph=True)
    first, second = coefficients.double()
    half = (first - second) / 2
    ((first + second) / 2 * both + half * audio - half * visual).backward(gradient)
    return both.detach(), [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("options", [{}, {"passes": "one"}, {"passes": "two"}, {"masked": "shared"}])
@pytest.mark.parametrize("writes", ["features", "input", "nothing"])
@pytest.mark.parametrize("kind", SAME)
def test_a_write_reaches_the_input_in_every_pass(kind: str, writes: str, options: dict[str, Any]) -> None:
    net = Net(SAME[kind](), writes)
    model = agm.AGM(net, NAMES, encoders=ENCODERS, **options)
    for _ in range(2):
        net.zero_grad()
        given = inputs()
        logits = model(**given, target=TARGET)
        F.cross_entropy(logits, TARGET).backward()
        own = [p.grad for p in net.parameters() if p.grad is not None]
        net.zero_grad()
        expected, gradients = by_definition(net, model.modulator.state.coefficients)
        torch.testing.assert_close(logits.detach(), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own, gradients, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(given["audio"], _written(net))


def _written(net: nn.Module) -> Tensor:
    given = inputs()
    net(**given)
    return given["audio"]


class Several(nn.Module):
    def __init__(self, part: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.part = nn.Linear(5, 6), part

    def forward(self, x: Tensor) -> Any:
        return self.part(self.linear(x))


class Taking(nn.Module):
    def __init__(self, part: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net, self.visual_net, self.head = Several(part), nn.Linear(4, 6), nn.Linear(12, 3)
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        kept, changed = self.audio_net(audio)
        changed.mul_(2.0)
        return self.head(F.pad(torch.cat([kept, self.visual_net(visual)], 1), (0, 6 - kept.shape[1])))


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("part", [lambda x: (x, x), lambda x: (x, x[:, :2])])
def test_features_that_are_part_of_one_another_are_refused_when_written_to(
    part: Callable[[Tensor], Any], masked: str
) -> None:
    net = Taking(part)
    model = agm.AGM(net, NAMES, encoders=ENCODERS, masked=masked)
    with pytest.raises(ValueError, match=r"not to be written to in place where they are part of another .* clone"):
        model(**inputs(), target=TARGET)
    assert int(model.modulator.state.step) == 0
    assert "forward" not in vars(net.audio_net)


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_halves_of_one_tensor_may_be_written_to(masked: str) -> None:
    model = agm.AGM(Taking(lambda x: (x[:, :3], x[:, 3:])), NAMES, encoders=ENCODERS, masked=masked)
    assert agm.verify(model, inputs(), TARGET).ok
