"""What the examples share: a small network of two encoders, and data in which the sound is easier than the image."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class AudioVisual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.visual_net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(64, 4)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], dim=1))


ENCODERS = {"audio": "audio_net", "visual": "visual_net"}


def dataset(samples: int = 256) -> TensorDataset:
    random = torch.Generator().manual_seed(0)
    target = torch.randint(4, (samples,), generator=random)
    classes = torch.eye(4)[target].repeat(1, 2)
    audio = classes + 0.3 * torch.randn(samples, 8, generator=random)
    visual = classes + 0.9 * torch.randn(samples, 8, generator=random)
    return TensorDataset(audio, visual, target)
