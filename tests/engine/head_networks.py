"""Networks that end in a linear head, and a batch for them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import agm

MODALITIES = ("audio", "visual")
PATHS = {"audio": "audio_net", "visual": "visual_net"}
BATCH, CLASSES, HIDDEN = 6, 40, 7


class Net(nn.Module):
    def __init__(self, **head: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.visual_net = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        self.mix, self.head = nn.Linear(11, HIDDEN), nn.Linear(HIDDEN, CLASSES, **head)
        self.double()

    def hidden(self, audio: Tensor, visual: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)))

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.head(self.hidden(audio, visual))


class Fusing(Net):
    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {name: self.get_submodule(path) for name, path in PATHS.items()}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.tanh(self.mix(torch.cat([features[name] for name in MODALITIES], 1))))

    def forward(self, **given: Tensor) -> Tensor:  # type: ignore[override]
        return self.fuse({name: encoder(given[name]) for name, encoder in self.encoders.items()})


class Bypassing(Fusing):
    """Whose forward computes what `fuse` does by itself."""

    def forward(self, **given: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.hidden(**given))


class Adding(Net):
    """Whose modalities add up in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Identity()  # type: ignore[assignment]
        self.left, self.right = nn.Linear(6, HIDDEN).double(), nn.Linear(5, HIDDEN).double()

    def hidden(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.left(self.audio_net(audio)) + self.right(self.visual_net(visual))


class Named(Net):
    """Whose output holds more than logits."""

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        hidden = self.hidden(audio, visual)
        return {"logits": self.head(hidden), "hidden": hidden}


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"audio": 4, "visual": 3}
    return {name: torch.randn(BATCH, size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}


TARGET = torch.tensor([0, 39, -100, 1, 3, 17])


def engine(network: nn.Module, **settings: Any) -> agm.AGM:
    return agm.AGM(network, MODALITIES, alpha=1.5, **settings)


def ending(network: nn.Module, **settings: Any) -> agm.AGM:
    return engine(network, head="head", loss="cross_entropy", **settings)


def gradients(model: agm.AGM, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))
