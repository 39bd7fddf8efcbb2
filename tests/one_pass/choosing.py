"""What the tests of choosing one pass or two share: small networks, their steps, and what their encoders see."""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm.models import (
    MLPEncoder,
    SmallCNN,
)

BATCH, CLASSES = 5, 3


# Rows of an encoder's passes.
TWO, SPLIT, SHARED, JOINED = ("B", "B + 1"), ("2 B + 1",), ("B", "1"), ("B + 1",)
OF_EACH = {TWO: ("B", "2 B"), SPLIT: ("3 B",), SHARED: ("B", "B"), JOINED: ("2 B",)}  # an absent row for each sample


def encoded(model: agm.AGM) -> list[tuple[str, ...]]:
    """Rows of each encoder's passes, as the plan says."""
    found: dict[str, list[str]] = {}
    for line in model.plan().lines:
        if line.part.startswith("encoder"):
            found.setdefault(line.part, []).append(str(line).split(" row")[0])
    return [tuple(passes) for passes in found.values()]


def why(model: agm.AGM, name: str) -> str:
    return next(line.note for line in reversed(model.plan().lines) if line.part == f"encoder `{name}`")


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def target() -> Tensor:
    return torch.arange(BATCH) % CLASSES


def train(model: agm.AGM, inputs: Callable[[int], dict[str, Any]], lr: float = 0.05) -> dict[str, Any]:
    """All that training leaves behind."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    torch.manual_seed(7)
    history = []
    for step in range(3):
        optimizer.zero_grad()
        logits = model(**inputs(step), target=target())
        F.cross_entropy(logits, target()).backward()
        history.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        optimizer.step()
    return {
        "history": history,
        "state": model.state_dict(),
        "modes": [m.training for m in model.modules()],
        "generator": torch.get_rng_state(),
    }


def assert_one_is_two(
    network: nn.Module,
    inputs: Callable[[int], dict[str, Any]],
    expected: tuple[str, ...] = SPLIT,
    lr: float = 0.05,
    apart: tuple[str, ...] = TWO,
    of_each: bool = False,
    **options: Any,
) -> None:
    network = network.double()
    models = {p: agm.AGM(copy.deepcopy(network), alpha=3.0, passes=p, **options) for p in ("one", "two")}
    one, two = (train(models[passes], inputs, lr) for passes in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    assert set(encoded(models["one"])) == {expected, *([OF_EACH[expected]] if of_each else [])}
    assert set(encoded(models["two"])) == {apart, *([OF_EACH[apart]] if of_each else [])}


def vectors(step: int) -> dict[str, Tensor]:
    return {"audio": rows(BATCH, 4, seed=step), "visual": rows(BATCH, 6, seed=step + 10)}


def images(step: int) -> dict[str, Tensor]:
    return {"audio": rows(BATCH, 1, 9, 12, seed=step), "visual": rows(BATCH, 2, 3, 8, 8, seed=step + 10)}


def mlps() -> dict[str, nn.Module]:
    return {name: nn.Sequential(MLPEncoder(width, num_features=8), nn.Dropout(0.2)) for name, width in WIDTHS.items()}


def cnns() -> dict[str, nn.Module]:
    return {"audio": nn.Sequential(SmallCNN(1, 8), nn.Dropout(0.1)), "visual": SmallCNN(3, 8)}  # the latter of frames


WIDTHS = {"audio": 4, "visual": 6}
FEATURES = {"audio": 8, "visual": 8}


_NOTES: WeakKeyDictionary["Log", list[Any]] = WeakKeyDictionary()


class Log:
    """What calls note for a test: nothing in the network's attributes, which would be put back."""

    @property
    def notes(self) -> list[Any]:
        return _NOTES.setdefault(self, [])


class Seen(nn.Module):
    """Notes the rows of its calls."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.log = Log()

    @property
    def rows(self) -> list[int]:
        return self.log.notes

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.inside(x)


def seen(step: Callable[[], object], encoders: list[Seen]) -> list[list[int]]:
    """The rows of each encoder's calls in a step after the first, which also compares numbers."""
    step()
    for encoder in encoders:
        encoder.rows.clear()
    step()
    return [encoder.rows for encoder in encoders]


def plain(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Dropout(0.0))


def normed(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU())


def dropping(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.2))


class Pair(nn.Module):
    """Encoders that only paths name."""

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.audio_net, self.visual_net = Seen(make(4)), Seen(make(6))
        self.head = nn.Linear(16, CLASSES)
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


PATHS = {"audio": "audio_net", "visual": "visual_net"}


def same_width(step: int) -> dict[str, Tensor]:
    return {name: x[:, :4] for name, x in vectors(step).items()}
