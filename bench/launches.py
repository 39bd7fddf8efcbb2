"""Operations that a whole training step sends to the device: on a GPU they, not arithmetic, bound small steps."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import agm
from bench.cases import Options
from bench.counting import Dispatched
from bench.networks import NETWORKS, Network
from bench.rivals import Sequential, Vectorised
from bench.rows import Row

WARM_UP = 3
REFRESH = 16
BATCH = 8
NAMES = ("av-mnist", "ur-funny", "small")

# Allocate, but compute nothing.
_NOTHING = ("aten.empty", "aten.new_empty", "aten._unsafe_view")

# Of `agm.AGM`. One pass is what "auto" takes on a GPU.
FORMS: Mapping[str, dict[str, Any]] = {
    "exact": {"passes": "one"},
    "exact, two passes": {"passes": "two"},
    "shared": {"masked": "shared", "passes": "one"},
    "shared, two passes": {"masked": "shared", "passes": "two"},
    "refreshed": {  # shared, without a gradient through absent rows
        "masked": "shared",
        "passes": "one",
        "absent_gradient": False,
        "absent_refresh": REFRESH,
    },
}
RIVALS: Mapping[str, Any] = {"published loop": Sequential, "published, vectorised": Vectorised}


@dataclass(frozen=True)
class Launches:
    """Of one variant the operations of a step, on average over the steps after which it repeats itself."""

    variant: str
    count: float
    of_joint: float
    names: Counter[str]


def launches(
    network: Network, fusion: str, modalities: int, batch: int, device: torch.device, variants: Collection[str] = ()
) -> Iterator[Launches]:
    """Counts a step of each variant; the first is the joint step.

    An operation is one that reaches the dispatcher below autograd and computes something: views and allocations are
    left out. On a GPU it is a launch, or a few.

    Args:
        network: which.
        fusion: of its modalities.
        modalities: how many.
        batch: samples of a step.
        device: where; a CPU has a few operations more, that check class indices.
        variants: those to count beside the joint step; empty: all.
    """
    module = network.build(fusion, modalities).to(device).train()
    inputs, target = network.inputs(modalities, batch, device)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, foreach=True)

    def counted(forward: Callable[[], Any], steps: int = 1) -> Counter[str]:
        names: Counter[str] = Counter()
        for step in range(WARM_UP + steps):
            with Dispatched() as dispatched:
                optimizer.zero_grad()
                F.cross_entropy(forward(), target).backward()
                optimizer.step()
            if step >= WARM_UP:
                names.update(name for name in dispatched.names if not name.startswith(_NOTHING))
        return Counter({name: count / steps for name, count in names.items()})  # type: ignore[arg-type]

    joint = counted(lambda: module(**inputs))
    yield Launches("joint", joint.total(), 1.0, joint)
    for name, forward, steps in _variants(module, network, inputs, target):
        if variants and name not in variants:
            continue
        found = counted(forward, steps)
        yield Launches(name, found.total(), found.total() / joint.total(), found)


def _variants(
    module: nn.Module, network: Network, inputs: dict[str, Any], target: Any
) -> Iterator[tuple[str, Callable[[], Any], int]]:
    for name, kind in RIVALS.items():
        if name == "published loop" or len(inputs) <= network.most_rivals:
            rival = kind(module, tuple(inputs), network.alpha, network.max_gap)
            yield name, lambda rival=rival: rival(target, **inputs), 1
    for name, options in FORMS.items():
        model = agm.AGM(module, alpha=network.alpha, max_gap=network.max_gap, **options)
        model.to(target.device)
        model._passes.record.looks_again = 10**9  # of thousands of steps a handful look whether rows meet
        yield name, lambda model=model: model(**inputs, target=target), REFRESH if "refreshed" in name else 1


def main(options: Options, keep: Callable[[Row], object]) -> int:
    """Prints what is counted, network by network."""
    for name in options.networks or NAMES:
        network = NETWORKS[name]
        for fusion, modalities in network.cases[:1]:
            batch = options.batch or BATCH
            print(f"{name} {fusion} M={modalities} B={batch}: operations of a step, over a joint one", flush=True)
            for row in launches(network, fusion, modalities, batch, options.device, options.variants):
                print(f"  {row.variant:58} {row.count:8.0f} {row.of_joint:7.3f}", flush=True)
                facts = {"network": name, "fusion": fusion, "modalities": modalities, "batch": batch}
                keep({"suite": "launches", **facts, "variant": row.variant, "operations": row.count})
    return 0
