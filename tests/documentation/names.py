"""What a page takes for granted: pages that are not self-contained find these names."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm


class AudioVisual(nn.Module):
    """Two encoders and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net, self.visual_net = nn.Linear(4, 6), nn.Linear(5, 6)
        self.head = nn.Linear(12, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


def names(page: str) -> dict[str, Any]:
    """The names for a page of this place in the repository."""
    return _PAGES[page]() if page in _PAGES else {}


def _readme() -> dict[str, Any]:
    net = AudioVisual()
    batch = {"a": torch.randn(6, 4), "v": torch.randn(6, 5), "y": torch.randint(3, (6,))}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    return {"net": net, "F": F, "optimizer": optimizer, "device": "cpu", **batch}


def _strategies() -> dict[str, Any]:
    from agm.strategies import Strategy
    from agm.strategies._checks import check_number
    from agm.strategies.batch import Batch
    from agm.strategies.strategy import Common

    encoders = {"audio": nn.Linear(4, 6), "visual": nn.Linear(5, 6)}
    network = agm.models.LateFusion(encoders, 3, num_features={"audio": 6, "visual": 6})
    loader = [({"audio": torch.randn(6, 4), "visual": torch.randn(6, 5)}, torch.randint(3, (6,)))]
    typing = {"Any": Any, "nn": nn, "Unpack": Unpack, "Strategy": Strategy, "Batch": Batch, "Common": Common}
    data = {"network": network, "loader": loader, "validation_loader": loader, "epochs": 1}
    return {"torch": torch, "check_number": check_number, **typing, **data}


_PAGES = {"README.md": _readme, "agm/strategies/README.md": _strategies}
