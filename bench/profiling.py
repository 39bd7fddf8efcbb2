"""Where the time of a training step goes: by part of the step, forward and backward."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

import agm
from bench import rivals, step
from bench.cases import Options
from bench.measure import seconds_of
from bench.networks import NETWORKS
from bench.step import Training

STEPS = 3
MODULATION, FUSION, ROWS, LOSS, OPTIMIZER = "modulation", "fusion", "rows of subsets", "loss", "optimizer"
ACCUMULATION, REST = "gradients added up", "between operations"
_PREFIX = "part: "
_AGM = Path(agm.__file__).parent
# What computes scores, coefficients and gradients; the rest of the library arranges passes.
_HEADS = {str(_AGM / "modulation" / name) for name in ("functional.py", "additive.py", "modulator.py")}
_RIVALS = str(rivals.__file__)
_EVALUATION = "autograd::engine::evaluate_function: "


class _Parts(TorchFunctionMode):
    """Marks every torch function of a forward with the part of the step that calls it, which the Python frames tell.

    Nothing is put on the network: with hooks, AGM would compute another plan.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network
        self._names = {id(module): f"encoder {name}" for name, module in network.encoders.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with record_function(_PREFIX + self._part()):
            return func(*args, **(kwargs or {}))

    def _part(self) -> str:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if code.co_filename in _HEADS or (code.co_filename == _RIVALS and code.co_name == "modulate"):
                return MODULATION
            owner = frame.f_locals.get("self") if "self" in code.co_varnames else None
            if id(owner) in self._names:
                return self._names[id(owner)]
            if owner is self._network:
                return FUSION
            frame = frame.f_back
        return ROWS


def table(options: Options) -> str:
    """Parts of a step, in words, of every variant that is asked for: milliseconds a step, forward and backward."""
    text = []
    for name in options.networks or ("av-mnist",):
        network = NETWORKS[name]
        chosen = step.selected(network, options)
        for fusion, count in chosen if options.fusions or options.modalities else chosen[:1]:
            batch = options.batch or (network.batch if options.device.type == "cuda" else network.batch_on_cpu)
            wanted = options.variants or ("exact", "shared")
            training = step.prepare(network, fusion, count, batch, _with(options, wanted))
            text.append(f"{name} {fusion} M={count} B={batch}, ms a step")
            for variant in ("joint", *wanted) if "joint" not in wanted else wanted:
                found = parts(training, variant)
                calls = [seconds_of(partial(training.run, variant), 1, options.device) for _ in range(options.rounds)]
                text += ["", *lines(variant, found), f"  {'without the profiler':22} {1e3 * median(calls):19.2f}"]
    return "\n".join(text)


def _with(options: Options, variants: tuple[str, ...]) -> Options:
    return Options(options.device, options.rounds, variants=variants)


def parts(training: Training, variant: str) -> dict[str, tuple[float, float]]:
    """Part -> seconds of its forward and of its backward, a step; the last one, `REST`, is what no operation takes."""
    training.run(variant)
    device = training.target.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as recorded:
        for _ in range(STEPS):
            with record_function("step"):
                _run(training, variant)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
    return _sums(list(recorded.events()), _clock(device))


def _run(training: Training, variant: str) -> None:
    """`Training.run`, its parts marked."""
    taken = training.steps[variant]
    with record_function(_PREFIX + OPTIMIZER):
        training.optimizer.zero_grad()
    with _Parts(training.network):
        logits = taken.forward()
    with record_function(_PREFIX + LOSS):
        loss = F.cross_entropy(logits, training.target)
    loss.backward()
    if taken.between is not None:
        with record_function(_PREFIX + MODULATION):
            taken.between()
    with record_function(_PREFIX + OPTIMIZER):
        training.optimizer.step()


def _clock(device: torch.device) -> Callable[[Any], float]:
    """Seconds of an event: of the host, or of the kernels that it launched."""
    if device.type == "cuda":
        return lambda event: event.device_time_total / 1e6
    return lambda event: event.time_range.elapsed_us() / 1e6


def _sums(events: list[Any], clock: Callable[[Any], float]) -> dict[str, tuple[float, float]]:
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    of_sequence: dict[int, str] = {}
    for event in events:
        part = next(_enclosing(event), None)
        if part is not None and event.name.startswith(_PREFIX) and next(_enclosing(event.cpu_parent), None) is None:
            forward[part] += clock(event)
        elif part is not None and event.sequence_nr >= 0:
            of_sequence[event.sequence_nr] = part
    for event in events:
        if event.name.startswith(_EVALUATION):
            backward[_part_of_backward(event, of_sequence)] += clock(event)
    whole = sum(event.time_range.elapsed_us() for event in events if event.name == "step") / 1e6
    found = {name: (forward[name] / STEPS, backward[name] / STEPS) for name in {**forward, **backward}}
    known = sum(forward.values()) + sum(backward.values())
    return {**found, REST: (max(whole - known, 0.0) / STEPS, 0.0)}


def _enclosing(event: Any) -> Iterator[str]:
    while event is not None:
        if event.name.startswith(_PREFIX):
            yield event.name.removeprefix(_PREFIX)
        event = event.cpu_parent


def _part_of_backward(event: Any, of_sequence: dict[int, str]) -> str:
    """The part whose forward made the node."""
    if "AccumulateGrad" in event.name:
        return ACCUMULATION
    if event.name.removeprefix(_EVALUATION).startswith(("_Scale", "_CrossEntropy")):
        return MODULATION
    for own in (event, *event.cpu_children):
        if own.sequence_nr in of_sequence:
            return of_sequence[own.sequence_nr]
    return REST


def lines(variant: str, found: dict[str, tuple[float, float]]) -> list[str]:
    whole = sum(sum(pair) for pair in found.values())
    text = [f"{variant:24} {'forward':>9} {'backward':>9} {'share':>7}"]
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))
    for name, (forward, backward) in ordered:
        text.append(f"  {name:22} {1e3 * forward:9.2f} {1e3 * backward:9.2f} {(forward + backward) / whole:7.1%}")
    return [*text, f"  {'in all':22} {1e3 * whole:19.2f}"]
