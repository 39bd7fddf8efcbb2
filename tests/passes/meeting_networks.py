"""Networks of two modalities in which samples may meet, and what their tests share."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("audio", "visual")
PATHS = {"audio": "audio_net", "visual": "visual_net"}
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])
MET = "one subset at a time, because rows of a batch have met"
OPTIONS: list[dict[str, Any]] = [
    {},
    {"encoders": PATHS},
    {"encoders": PATHS, "passes": "two"},
    {"encoders": PATHS, "masked": "shared"},
    {"encoders": PATHS, "absent_gradient": False},
    {"encoders": PATHS, "masked": "shared", "absent_gradient": False},
    {"encoders": PATHS, "masked": "shared", "absent_gradient": False, "absent_refresh": 3},
    {"max_rows": 12},
    {"checkpoint": True},
]


def batch(scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: scale * torch.randn(6, 5, generator=generator, dtype=torch.float64) for name in NAMES}


PASSES: list[int] = []  # the rows of each; out of the network's reach, in which what masked passes leave is put back


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net, self.visual_net = nn.Linear(5, 8), nn.Linear(5, 8)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 3)
        self.double()

    def mixed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        PASSES.append(len(audio))
        hidden = torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)
        return self.head(F.gelu(self.mixed(hidden)))


class Offering(nn.Module):
    """`encoders` and `fuse`."""

    def __init__(self, kind: type[Pairs]) -> None:
        super().__init__()
        self.inner = kind()
        self.encoders = nn.ModuleDict({"audio": self.inner.audio_net, "visual": self.inner.visual_net})

    def fuse(self, features: Any) -> Tensor:
        hidden = torch.cat([features["audio"], features["visual"]], 1)
        return self.inner.head(F.gelu(self.inner.mixed(hidden)))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})


class Centring(Pairs):
    def mixed(self, x: Tensor) -> Tensor:
        return x - x.mean(0)
