"""Buffers of every kind after compiled steps, which nobody can watch, are what the joint passes have left."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

NAMES = ("audio", "visual")
ENCODERS = {name: f"encoders.{name}" for name in NAMES}


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({name: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)) for name in NAMES})
        self.head = nn.Linear(12, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        logits = self.head(torch.cat([self.encoders["audio"](audio), self.encoders["visual"](visual)], 1))
        with torch.no_grad():
            self.steps += 1
            self.seen.logical_not_()
            self.mean.mul_(0.9).add_(logits.mean(0))
        return logits


@pytest.mark.parametrize("options", [{}, {"encoders": ENCODERS}], ids=str)
def test_they_are_those_of_the_joint_passes(options: dict[str, Any]) -> None:
    network, plain = Counting(), Counting()
    model = agm.AGM(network, NAMES, **options)
    step = torch.compile(model, backend="eager")
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = {name: torch.randn(6, 5) for name in NAMES}
        step(**inputs, target=torch.arange(6) % 3).sum().backward()
        plain(**inputs)
    torch.testing.assert_close(dict(network.named_buffers()), dict(plain.named_buffers()))
