"""What a training step with AGM costs over a joint one.

Two ResNet-18 on AV-MNIST shapes, late fusion, batch 64. Every variant does the whole step: forward, cross-entropy,
backward, SGD. The variants take turns in one run; ratios are taken round by round.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import interleaved, summary
from rivals import Sequential
from torch import Tensor, nn

import agm
from agm.models import LateFusion, ResNet18

SHAPES = {"audio": (1, 112, 112), "image": (1, 28, 28)}
BATCH, CLASSES, ALPHA = 64, 10, 2.5


def step(network: nn.Module, logits: Callable[[], Tensor], target: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits(), target).backward()
        optimizer.step()

    return run


def variants(device: torch.device) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    inputs = {name: torch.randn(BATCH, *shape, device=device) for name, shape in SHAPES.items()}
    target = torch.randint(CLASSES, (BATCH,), device=device)
    first = LateFusion({name: ResNet18(shape[0]) for name, shape in SHAPES.items()}, CLASSES).to(device)
    networks = {name: copy.deepcopy(first) for name in ("joint", "sequential", "exact", "shared")}
    sequential = Sequential(networks["sequential"], tuple(SHAPES), ALPHA)
    exact = agm.AGM(networks["exact"], alpha=ALPHA).to(device)
    shared = agm.AGM(networks["shared"], alpha=ALPHA, masked="shared").to(device)
    forwards: dict[str, Callable[[], Tensor]] = {
        "joint": lambda: networks["joint"](**inputs),
        "sequential": lambda: sequential(target, **inputs),
        "exact": lambda: exact(**inputs, target=target),
        "shared": lambda: shared(**inputs, target=target),
    }
    return {name: step(networks[name], forward, target) for name, forward in forwards.items()}


def run(rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Prints the table and returns its rows."""
    seconds = interleaved(variants(device), rounds, device)
    facts = {"suite": "step", "network": "2 x ResNet-18, late", "batch": BATCH}
    rows = [facts | {"variant": name} | summary(values, seconds["joint"]) for name, values in seconds.items()]
    print(f"{'variant':12} {'over joint':>10} {'20 %':>6} {'80 %':>6} {'ms':>8}")
    for row in rows:
        ratios = f"{row['ratio']:10.2f} {row['ratio_20']:6.2f} {row['ratio_80']:6.2f}"
        print(f"{row['variant']:12} {ratios} {1e3 * row['seconds']:8.1f}")
    return rows
