"""Ways in which code reads `self.training`: in one pass it is told, or the encoder has two."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

IDIOMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "if": lambda s, x: x * 1.5 if s.training else x * 0.5,
    "float * mode": lambda s, x: x * (1 + 0.5 * s.training),
    "mode * float": lambda s, x: x * (1 + s.training * 0.5),
    "float - mode": lambda s, x: x * (1.0 - s.training) + x,
    "float / mode": lambda s, x: x / (2.0 - s.training),
    "float ** mode": lambda s, x: x * 2.0**s.training,
    "math": lambda s, x: x * math.pow(2.0, s.training),
    "product": lambda s, x: x * (1 + math.prod([0.5, s.training])),
    "index": lambda s, x: x * (0.5, 1.5)[s.training],
    "slice": lambda s, x: x + sum(f(x) for f in (torch.tanh, torch.relu)[s.training :]),
    "key": lambda s, x: x * {True: 1.5, False: 0.5}[s.training],
    "get": lambda s, x: x * {True: 1.5, False: 0.5}.get(s.training, 9.0),
    "in a set": lambda s, x: x * (1.5 if s.training in {True} else 0.5),
    "float < mode": lambda s, x: x * (1.5 if 0.5 < s.training else 0.5),  # noqa: SIM300
    "minimum": lambda s, x: x * (1 + min(0.5, s.training)),
    "exclusive or": lambda s, x: x * (1.5 if True ^ s.training else 0.5),
    "sum": lambda s, x: x * (1 + sum([s.training, True])),
    "range": lambda s, x: x + sum(x * i for i in range(1 + s.training)),
    "text": lambda s, x: x * {"True": 1.5, "False": 0.5}[str(s.training)],
    "NumPy": lambda s, x: x * float(np.where(s.training, 1.5, 0.5)),
    "isinstance": lambda s, x: x * (1.5 if isinstance(s.training, bool) and s.training else 0.5),
    "tensor * mode": lambda s, x: x * s.training + x,
    "clamp": lambda s, x: x.clamp(-0.1 - 1.0 * s.training, 0.1 + 1.0 * s.training),
    "dropout": lambda s, x: F.dropout(x, 0.0, s.training),
}


class Encoder(nn.Module):
    def __init__(self, idiom: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.idiom = nn.Linear(5, 8), idiom

    def forward(self, x: Tensor) -> Tensor:
        return self.idiom(self, self.linear(x))


class Net(nn.Module):
    def __init__(self, idiom: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net, self.visual_net, self.head = Encoder(idiom), nn.Linear(5, 8), nn.Linear(16, 4)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


@pytest.mark.parametrize("idiom", IDIOMS)
def test_is_what_two_passes_are(idiom: str) -> None:
    paths = {"audio": "audio_net", "visual": "visual_net"}
    model = agm.AGM(Net(IDIOMS[idiom]).double(), ("audio", "visual"), alpha=2.0, encoders=paths)
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.randn(6, 5, generator=generator, dtype=torch.float64) for name in ("audio", "visual")}
    for _ in range(2):
        result = agm.verify(model, inputs, torch.tensor([0, 1, 2, 3, 0, 1]))
        assert result.ok, str(result)
        model(**inputs, target=torch.tensor([0, 1, 2, 3, 0, 1]))
