"""Small networks of two modalities, and their masked logits by the definition."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import agm

BOTH = {"audio": "audio_net", "visual": "visual_net"}


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int = 4) -> dict[str, Tensor]:
    return {"audio": rows(batch, 6), "visual": rows(batch, 6, seed=1)}


class Pairs(nn.Module):
    def __init__(self, audio: nn.Module | None = None, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.audio_net = nn.Linear(6, 5) if audio is None else audio
        self.visual_net = nn.Linear(6, 5) if visual is None else visual
        self.head = nn.Linear(10, 3)
        self.double()

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [self.audio_net(audio), self.visual_net(visual)]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat(self.features(audio, visual), 1))


def separate(network: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """The definition for two modalities, pass by pass."""
    joint = network(**given)
    network.eval()
    zeros = {name: torch.zeros_like(x) for name, x in given.items()}
    passes = [network(**{**zeros, "audio": given["audio"]}), network(**{**zeros, "visual": given["visual"]}), joint]
    network.train()
    return torch.stack(passes)


def assert_equals_separate_passes(network: nn.Module, given: dict[str, Tensor], **options: Any) -> None:
    expected = separate(copy.deepcopy(network), given)
    torch.testing.assert_close(agm.masked_logits(network, given, **options), expected)


class Factorised(nn.Module):
    """`encoders` and `fuse`, with what a subclass does around them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(6, 5), "visual": nn.Linear(6, 5)})
        self.head = nn.Linear(10, 3)
        self.double()

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, **given: Tensor) -> Tensor:
        return self.fuse({name: encoder(given[name]) for name, encoder in self.encoders.items()})
