"""A small network of two encoders, its batches, and its engine."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

MODALITIES = ("audio", "visual")
PATHS = {"audio": "audio_net", "visual": "visual_net"}


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU())
        self.visual_net = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        self.head = nn.Linear(2 * width, 5)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


class Factorised(Net):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = {"audio": self.audio_net, "visual": self.visual_net}

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))


def engine(kind: type[Net] = Net, seed: int = 0, **settings: object) -> agm.AGM:
    torch.manual_seed(seed)
    return agm.AGM(kind(), MODALITIES, **{"alpha": 1.5, **settings})


def batch(seed: int = 0, size: int = 12) -> tuple[dict[str, Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(5, (size,), generator=random)
    audio = torch.randn(size, 6, generator=random)
    audio[:, :5] += 2 * F.one_hot(target, 5)
    return {"audio": audio, "visual": torch.randn(size, 4, generator=random)}, target
