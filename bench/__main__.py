"""What a training step with AGM costs over a joint one: `python bench [--rounds N] [--device D] [--json FILE]`.

Two ResNet-18 on AV-MNIST shapes, late fusion, batch 64. Every variant does the whole step: forward, cross-entropy,
backward, SGD. The variants take turns in one run; ratios are taken round by round.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import environment, interleaved, summary
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one a line")
    options = parser.parse_args()
    device = torch.device(options.device)
    seconds = interleaved(variants(device), options.rounds, device)
    facts = environment(device) | {"suite": "step", "network": "2 x ResNet-18, late", "batch": BATCH}
    print(f"{'variant':12} {'over joint':>10} {'20 %':>6} {'80 %':>6} {'ms':>8}")
    for name, values in seconds.items():
        row = summary(values, seconds["joint"])
        print(
            f"{name:12} {row['ratio']:10.2f} {row['ratio_20']:6.2f} {row['ratio_80']:6.2f} {1e3 * row['seconds']:8.1f}"
        )
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts | {"variant": name} | row) + "\n")


if __name__ == "__main__":
    main()
