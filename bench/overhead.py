"""What a step costs beside arithmetic: Python calls, counted, and the time of a network too small for anything else."""

import gc
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from bench.cases import Options
from bench.rivals import Sequential, Vectorised
from bench.rows import Row

WARM_UP = 4  # the first batch looks at numbers, the second at what has become of that
ROUNDS = 400
BATCH = 8
_ENCODERS = {"audio": "audio", "visual": "visual"}

# Of `agm.AGM`: whether the network offers `encoders` and `fuse`, and the options.
FORMS: Mapping[str, tuple[bool, dict[str, Any]]] = {
    "one piece": (False, {}),
    "paths, exact": (False, {"encoders": _ENCODERS}),
    "paths, shared": (False, {"encoders": _ENCODERS, "masked": "shared"}),
    "paths, refreshed": (
        False,
        {"encoders": _ENCODERS, "masked": "shared", "absent_gradient": False, "absent_refresh": 16},
    ),
    "protocol, exact": (True, {}),
    "protocol, shared": (True, {"masked": "shared"}),
}


# Compiled as a whole, which torch does once; the first step looks at numbers and is not.
COMPILED = ("joint", "one piece", "paths, exact", "paths, shared", "protocol, shared")
_COMPILED = "compiled: "
# The same when every graph has been compiled, and torch is told to look no more whether they still fit.
_UNGUARDED = "compiled, guards skipped: "

# What people write instead: three passes one after the other, and the modulation.
RIVALS: Mapping[str, Any] = {"published loop": Sequential, "published, vectorised": Vectorised}

# What nobody can undercut who computes AGM function by function: `ByHand`.
BY_HAND = "shared, by hand"


class Paths(nn.Module):
    """Two encoders of a layer each, and a head on what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.visual = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.head(torch.cat([self.audio(audio), self.visual(visual)], 1))


class Protocol(nn.Module):
    """The same with `encoders` and `fuse`."""

    def __init__(self) -> None:
        super().__init__()
        plain = Paths()
        self.encoders = nn.ModuleDict({"audio": plain.audio, "visual": plain.visual})
        self.head = plain.head

    def fuse(self, features: Mapping[str, Tensor]) -> Any:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})


class ByHand:
    """A shared step of `Paths` written for this network alone, on the fused op: nothing checked, nothing put back."""

    def __init__(self, network: Paths, device: torch.device) -> None:
        self.network, self.state = network, agm.ModulationState(2, device)
        self.absent = torch.zeros(1, 8, device=device)

    def __call__(self, audio: Tensor, visual: Tensor, target: Tensor) -> Tensor:
        net = self.network
        features = [net.audio(torch.cat([audio, self.absent])), net.visual(torch.cat([visual, self.absent]))]
        weights = net.head.weight.split(16, 1)
        parts = torch.stack([feature @ own.t() for feature, own in zip(features, weights, strict=True)])
        present, absent = parts[:, :-1], parts[:, -1]
        return agm.fused_modulate_additive(present, absent, target, self.state, bias=net.head.bias)


@dataclass(frozen=True)
class Overhead:
    """Of one variant the Python functions that a step calls, its time, and both over three naive passes."""

    variant: str
    calls: int
    seconds: float
    calls_of_naive: float
    of_naive: float


def step_of(variant: str, device: torch.device) -> Callable[[], None]:
    """A training step, steady, of one of `RIVALS` or `FORMS`, `BY_HAND`, "joint", or "naive".

    The naive one is a joint pass and two masked ones, summed. "compiled: " before one says that the model is compiled,
    in one graph; zeroing, loss and backward are not.
    """
    compiles = variant.startswith((_COMPILED, _UNGUARDED))
    variant = variant.removeprefix(_COMPILED).removeprefix(_UNGUARDED)
    torch.manual_seed(0)
    protocol, options = FORMS.get(variant, (False, {}))
    network = (Protocol() if protocol else Paths()).to(device)
    audio, visual = torch.randn(2, BATCH, 8, device=device)
    target = torch.randint(0, 4, (BATCH,), device=device)

    def naive() -> Any:
        joint = network(audio, visual)
        network.eval()
        masked = network(audio, visual * 0) + network(audio * 0, visual)
        network.train()
        return joint + masked

    if variant in FORMS:
        model: Any = agm.AGM(network, ("audio", "visual"), **options).to(device)
        if compiles:
            F.cross_entropy(model(audio=audio, visual=visual, target=target), target).backward()
            model = torch.compile(model, fullgraph=True)

        def forward() -> Any:
            return model(audio=audio, visual=visual, target=target)
    elif variant == "naive":
        forward = naive
    elif variant == BY_HAND:
        written = ByHand(network, device)

        def forward() -> Any:
            return written(audio, visual, target)
    elif variant in RIVALS:
        rival = RIVALS[variant](network, ("audio", "visual"), alpha=1.0)

        def forward() -> Any:
            return rival(target, audio=audio, visual=visual)
    else:
        joint = torch.compile(network, fullgraph=True) if compiles else network

        def forward() -> Any:
            return joint(audio, visual)

    def step() -> None:
        network.zero_grad()
        F.cross_entropy(forward(), target).backward()

    for _ in range(WARM_UP):
        step()
    return step


def calls(step: Callable[[], None]) -> int:
    """How many Python functions a step calls."""
    found = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal found
        found += event == "call"

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()  # what is collected meanwhile may call functions of its own
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return found


def overhead(device: torch.device, variants: Collection[str] = (), rounds: int = ROUNDS) -> list[Overhead]:
    """Counts and times a step of each variant: the least time of rounds in which the variants take turns, a step each.

    Args:
        device: where.
        variants: those beside the joint step and the naive one; empty: all.
        rounds: how many.
    """
    compiled = [kind + name for kind in (_COMPILED, _UNGUARDED) for name in COMPILED]
    every = (*RIVALS, BY_HAND, *FORMS, *compiled)
    steps = {name: step_of(name, device) for name in ("joint", "naive", *(variants or every))}
    counts = {name: calls(step) for name, step in steps.items()}
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            skips = name.startswith(_UNGUARDED)
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True) if skips else nullcontext():
                start = time.perf_counter()
                step()
                least[name] = min(least[name], time.perf_counter() - start)
    return [
        Overhead(name, counts[name], least[name], counts[name] / counts["naive"], least[name] / least["naive"])
        for name in steps
    ]


def main(options: Options, keep: Callable[[Row], object]) -> int:
    """Prints what is counted and timed."""
    torch.set_num_threads(1)
    print(
        f"two encoders of a layer, M=2 B={BATCH}: Python calls of a step, us, time over three naive passes", flush=True
    )
    for row in overhead(options.device, options.variants):
        print(f"  {row.variant:43} {row.calls:6d} {1e6 * row.seconds:8.0f} {row.of_naive:7.2f}", flush=True)
        keep({"suite": "overhead", "variant": row.variant, "calls": row.calls, "seconds": row.seconds})
    return 0
