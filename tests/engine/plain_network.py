"""A network of two encoders and a head, and its steps by the definition, in plain loops."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm

NAMES = ("audio", "visual")
ENCODERS = {"audio": "audio_net", "visual": "visual_net"}
BATCH, CLASSES = 6, 4
TARGET = torch.tensor([0, 1, 2, 3, 0, 1])
# In which ways a step takes its masked passes.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"encoders": ENCODERS},
    {"encoders": ENCODERS, "passes": "two"},
    {"encoders": ENCODERS, "masked": "shared"},
    {"max_rows": 6},
]


def inputs(seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(BATCH, 4, generator=generator, dtype=torch.float64) for name in NAMES}


class Net(nn.Module):
    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.visual_net = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Linear(10, classes)
        self.double()

    def hidden(self, audio: Tensor, visual: Tensor) -> Tensor:
        return torch.cat([self.audio_net(audio), self.visual_net(visual)], -1)

    def logits(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(self.hidden(audio, visual))

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.logits(audio, visual)


def expected(masked: str = "exact", alpha: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Logits and gradients of the plain network in a first step, by whatever way `agm.AGM` takes for it."""
    model = agm.AGM(Net(), NAMES, encoders=ENCODERS, masked=masked, alpha=alpha)  # type: ignore[arg-type]
    logits = model(**inputs(), target=TARGET)
    F.cross_entropy(logits, TARGET).backward()
    return logits.detach(), [p.grad for p in model.module.parameters()]


def same_step(model: agm.AGM, call: Callable[[], Any], logits: Callable[[Any], Tensor]) -> Any:
    """That a step gives the logits and gradients of `expected`; returns what the call returned."""
    output = call()
    found = logits(output)
    F.cross_entropy(found, TARGET).backward()
    want, gradients = expected(model._options.masked)
    torch.testing.assert_close(found.detach(), want, rtol=0, atol=1e-12)
    torch.testing.assert_close([p.grad for p in model.module.parameters()], gradients, rtol=0, atol=1e-12)
    return output


def count_rows(layer: nn.Module, rows: list[int]) -> None:
    """Notes the rows of a layer's calls; a hook that only did that would see the joint pass alone."""

    def forward(x: Tensor) -> Tensor:
        rows.append(x.shape[0])
        return type(layer).forward(layer, x)

    layer.forward = forward  # type: ignore[method-assign]


class Factorised(Net):
    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"audio": self.audio_net, "visual": self.visual_net}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], -1))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual)})
