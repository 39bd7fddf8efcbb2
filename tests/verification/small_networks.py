"""Small networks of two modalities, right ones and one that is not, and the model around them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import agm

BATCH = 6
BOTH = {"audio": "audio_net", "visual": "visual_net"}
TARGET = torch.tensor([0, 1, 2, 0, 2, 1])


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"audio": rows(BATCH, 6, dtype=dtype), "visual": rows(BATCH, 6, seed=1, dtype=dtype)}


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 5))


class Pairs(nn.Module):
    def __init__(self, audio: nn.Module | None = None, visual: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net = audio or encoder()
        self.visual_net = visual or encoder()
        self.head = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


class Fusing(Pairs):
    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"audio": self.audio_net, "visual": self.visual_net}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual)})


def engine(network: nn.Module, *, trained: bool = True, **options: Any) -> agm.AGM:
    model = agm.AGM(network, ("audio", "visual"), **({"alpha": 2.0} | options))
    if trained:
        model.modulator.state.running_scores.copy_(torch.tensor([1.0, 2.0]))
        model.modulator.state.step.fill_(3)
    return model


class Reordering(nn.Linear):
    """Returns its rows from the last to the first, as one that sorts by length would."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(0)


class Reordered(Pairs):
    """Puts the rows of `Reordering` in order."""

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio).flip(0), self.visual_net(visual)], 1))
