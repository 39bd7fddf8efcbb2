"""Networks of three modalities whose samples attend to each other, with encoders of several kinds."""

from typing import Any

import torch
from torch import Tensor, nn

NAMES = ("audio", "visual", "text")
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])
MET = "one subset at a time, because "
SHARED: dict[str, Any] = {"masked": "shared"}
OPTIONS: list[dict[str, Any]] = [
    SHARED,
    {**SHARED, "absent_gradient": False},
    {**SHARED, "absent_gradient": False, "absent_refresh": 2},
    {"absent_gradient": False},
    {},
]
ROWS: dict[str, list[int]] = {}  # of each encoder; out of the network's reach


def batch(scale: float = 1.0, size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: scale * torch.randn(size, 5, generator=generator, dtype=torch.float64) for name in NAMES}


class Encoder(nn.Sequential):
    def __init__(self, name: str) -> None:
        super().__init__(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh())
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        ROWS.setdefault(self.name, []).append(len(x))
        return self.mixed(super().forward(x))

    def mixed(self, x: Tensor) -> Tensor:
        return x

    def method(self, x: Tensor) -> Tensor:
        return self(x)


class Network(nn.Module):
    """A fusion in which samples attend to each other."""

    encoder = Encoder

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleDict({name: self.encoder(name) for name in NAMES})
        self.head = nn.Linear(24, 3)
        self.double()

    @property
    def paths(self) -> dict[str, str]:
        return {name: f"nets.{name}" for name in NAMES}

    def given(self, x: Tensor) -> Tensor:
        return x

    def features(self, **inputs: Tensor) -> list[Tensor]:
        return [self.nets[name](self.given(x)) for name, x in inputs.items()]

    def fused(self, x: Tensor) -> Tensor:
        return x + torch.softmax(x @ x.T, -1) @ x

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        return self.head(self.fused(torch.cat(self.features(audio=audio, visual=visual, text=text), 1)))


class Methods(Network):
    @property
    def paths(self) -> dict[str, str]:
        return {name: f"nets.{name}.method" for name in NAMES}

    def features(self, **inputs: Tensor) -> list[Tensor]:
        return [self.nets[name].method(x) for name, x in inputs.items()]


class Tower(Network):
    """One encoder of all, in an order of its own."""

    @property
    def paths(self) -> dict[str, str]:
        return dict.fromkeys(NAMES, "nets.audio")

    def features(self, **inputs: Tensor) -> list[Tensor]:
        return [self.nets["audio"](inputs[name]) for name in ("text", "audio", "visual")]


class TwoTowers(Network):
    """One encoder of two modalities, and another."""

    @property
    def paths(self) -> dict[str, str]:
        return {"audio": "nets.audio", "text": "nets.text", "visual": "nets.audio"}

    def features(self, **inputs: Tensor) -> list[Tensor]:
        first = self.nets["audio"](inputs["visual"] * 2)
        return [self.nets["audio"](inputs["audio"]), self.nets["text"](inputs["text"]), first]
