"""What each op costs alone: forward, backward, and both by way of the public function.

Inputs and tolerances are those of the tests. Before it is timed, every variant is compared with the reference.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import agm
from agm.ops import _backends, reference
from bench.cases import Built, Case, Notes, Options
from bench.measure import copy_bandwidth
from bench.rivals import Compiled, Constant, Sequential, Vectorised
from bench.shared import additive_steps, losses, samples, steps

BASELINE = "reference"
OWN = ("cuda", "triton", "cpp", "reference", "auto")

# (M, B, C): few numbers, where calls cost more than work; the paper's datasets; large batches; large vocabularies
SHAPES = ((2, 64, 10), (2, 64, 309), (3, 64, 101), (6, 64, 101), (2, 4096, 309), (2, 64, 10000))
LARGE_SHAPES = ((2, 16384, 1024), (3, 8192, 1024), (2, 2048, 32768))  # on a GPU: beyond its caches
COMPILED_SHAPES = ((2, 64, 10), (2, 4096, 309))  # a compilation takes longer than all measurements of a shape
QUICK_SHAPES = ((2, 64, 10), (2, 64, 309))
# Features of each modality (B, D_m) for the expansion.
FEATURES = ((64, (512, 512)), (16, (768, 768, 768)), (4096, (128, 128)), (2, (8, 8)))


@dataclass(frozen=True)
class Op:
    """One op on one shape.

    Attributes:
        prepared: its arguments, of its own, and so a state that nobody else writes to.
        check: compares what a backend's room computes with the reference.
        moved: bytes that have to be moved, each once.
        compile: whether `torch.compile` of the reference takes part.
    """

    name: str
    shape: str
    prepared: Callable[[], tuple[Any, ...]]
    check: Callable[[samples.Room], object]
    moved: int
    compile: bool = False


def modulation_ops(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Iterator[Op]:
    modalities, batch, classes = shape
    rows, size = 2**modalities - 1, batch * classes * dtype.itemsize
    text, compiled = f"M={modalities} B={batch} C={classes}", shape in COMPILED_SHAPES
    step, loss = given_step(shape, dtype), losses.loss_of(*shape, dtype, label_smoothing=0.1)
    loss = replace(loss, step=step)
    additive = all_used(additive_steps.additive_step(*shape, dtype))
    grad = step.masked_logits[-1].clone().to(device)
    scales = torch.linspace(-1, 1, rows, dtype=torch.float64, device=device)
    both = torch.linspace(-1, 1, 2 * modalities + 2, dtype=torch.float64, device=device).view(2, -1)

    def modulate() -> tuple[Any, ...]:
        arguments: tuple[Any, ...] = tuple(vars(step.on(device.type)).values())
        return arguments

    yield Op("modulate", text, modulate, partial(_check_step, step), rows * size, compiled)
    backward = grad, scales
    check = partial(_check_close, "modulate_backward", backward)
    yield Op("modulate_backward", text, lambda: backward, check, (rows + 1) * size, compiled)

    def cross_entropy() -> tuple[Any, ...]:
        arguments: tuple[Any, ...] = loss.on(device.type).forward_arguments()
        return arguments

    check = partial(losses.check_loss, given=loss)
    yield Op("modulate_cross_entropy", text, cross_entropy, check, rows * size, compiled)
    name = "modulate_cross_entropy_backward"
    loss_backward = cache(lambda: _loss_backward(loss, device, scales))
    yield Op(name, text, loss_backward, check, (rows + 1) * size, compiled)

    def additive_arguments() -> tuple[Any, ...]:
        arguments: tuple[Any, ...] = tuple(vars(additive.on(device.type)).values())
        return arguments

    check = partial(additive_steps.check, given=additive)
    yield Op("modulate_additive", text, additive_arguments, check, (modalities + 1) * size, compiled)
    backward_parts = grad, both, False
    check = partial(_check_close, "modulate_additive_backward", backward_parts)
    yield Op("modulate_additive_backward", text, lambda: backward_parts, check, (modalities + 1) * size, compiled)


def given_step(shape: tuple[int, int, int], dtype: torch.dtype) -> steps.Step:
    return all_used(steps.step(*shape, dtype))


def all_used(step: Any) -> Any:
    """Of the tests' samples every fourth is ignored, which would cost less; here none is."""
    return replace(step, target=step.target.clamp(min=0))


def _check_step(given: steps.Step, room: samples.Room) -> None:
    steps.check(room, given)


def _check_close(name: str, arguments: tuple[Any, ...], room: samples.Room) -> None:
    """A backward is a product of float32 numbers, or a sum of as many as there are rows."""
    results, wanted = room.op(name)(*arguments), getattr(reference, name)(*arguments)
    results, wanted = [value if isinstance(value, tuple) else (value,) for value in (results, wanted)]
    for result, expected in zip(results, wanted, strict=True):
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * max(largest, 1.0))


def _loss_backward(loss: losses.Loss, device: torch.device, scales: Tensor) -> tuple[Any, ...]:
    given = loss.on(device.type)
    _, _, normalizer, sums = reference.modulate_cross_entropy(*given.forward_arguments())
    arguments: tuple[Any, ...] = given.backward_arguments(normalizer, sums, scales)
    return arguments


def expansion_ops(batch: int, widths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Op]:
    numbers = partial(samples.logits, dtype=dtype, device=device.type)
    present, absent = [numbers(batch, width) for width in widths], [numbers(1, width) for width in widths]
    rows, text = 2 ** len(widths) - 2, f"B={batch} D={'+'.join(map(str, widths))}"
    size = (rows + 1) * batch * sum(widths) * dtype.itemsize
    forward, backward = (present, absent, True), (numbers(rows * batch, sum(widths)), list(widths), batch, True)
    for name, arguments in (("expand_subsets", forward), ("expand_subsets_backward", backward)):
        yield Op(name, text, partial(_same, arguments), partial(_check_close, name, arguments), size)


def _same(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments


def ops(options: Options, dtype: torch.dtype = torch.float32) -> Iterator[Op]:
    device = options.device
    shapes = QUICK_SHAPES if options.quick else SHAPES + (LARGE_SHAPES if device.type == "cuda" else ())
    for shape in shapes:
        yield from modulation_ops(shape, dtype, device)
    for batch, widths in FEATURES[: 1 if options.quick else None]:
        yield from expansion_ops(batch, widths, dtype, device)


def cases(options: Options) -> Iterator[Case]:
    for op in ops(options):
        if not options.ops or op.name in options.ops:
            yield _case(op, options)
    shapes = QUICK_SHAPES if options.quick else SHAPES + (LARGE_SHAPES if options.device.type == "cuda" else ())
    for shape in shapes:
        if not options.ops or "fused_modulate" in options.ops:
            yield _both(shape, options)


def _case(op: Op, options: Options) -> Case:
    def build() -> Built:
        compiled = op.compile and not options.quick and options.takes("compiled")
        calls = {}
        for name, room in rooms(op.name, options, compiled).items():
            op.check(room)
            calls[name] = partial(room.op(op.name), *op.prepared())
        return Built(calls, lambda: rates(calls, op.moved, options.device))

    facts = {"op": op.name, "shape": op.shape, "dtype": "float32"}
    return Case(facts, BASELINE, OWN, build)


class _CompiledLibrary:
    """Stands where a test's library stands: the reference's functions, compiled."""

    def __init__(self) -> None:
        self._functions: dict[str, Constant] = {}

    def op(self, name: str) -> Constant:
        if name not in self._functions:
            self._functions[name] = Constant(getattr(reference, name))
        return self._functions[name]


def rooms(op: str, options: Options, compiled: bool) -> dict[str, samples.Room]:
    """Each backend that serves the op here, and the compiled reference; the interpreter is none of them."""
    device = options.device.type
    found = {
        name: samples.Room(name, device)
        for name, backend in _backends.BACKENDS.items()
        if backend.why_not(op, device) is None
        and not (name == "triton" and device == "cpu")
        and (name == BASELINE or options.takes(name))
    }
    if compiled:
        torch.compiler.reset()  # which otherwise gives up after a few shapes of one function
        found["compiled"] = samples.Room("compiled", device, _CompiledLibrary())
    return found


def rates(calls: Mapping[str, Callable[[], object]], moved: int, device: torch.device) -> Notes:
    """Bytes and the measured copy bandwidth; on a GPU launches."""
    notes: Notes = {name: {"bytes": moved, "copy_bandwidth": copy_bandwidth(device)} for name in calls}
    if device.type == "cuda":
        for name, call in calls.items():
            notes[name]["launches"] = len(samples.kernels_of(call))
    return notes


def _both(shape: tuple[int, int, int], options: Options) -> Case:
    """`agm.fused_modulate` and its backward, against the same in the rivals' ways."""
    modalities, batch, classes = shape
    facts = {"op": "fused_modulate", "shape": f"M={modalities} B={batch} C={classes}", "dtype": "float32"}
    moved = (2 * (2**modalities - 1) + 1) * batch * classes * 4

    def build() -> Built:
        calls = both_calls(shape, options)
        return Built(calls, lambda: rates(calls, moved, options.device))

    return Case(facts, BASELINE, OWN, build)


def both_calls(shape: tuple[int, int, int], options: Options) -> Mapping[str, Callable[[], Tensor]]:
    """Forward and backward of one step from masked logits; each returns the gradient of the masked logits."""
    device = options.device
    given = given_step(shape, torch.float32).on(device.type)
    masked, grad = given.masked_logits.requires_grad_(), given.masked_logits[-1].detach().clone()
    forwards: dict[str, Callable[[], Tensor]] = {}
    for name in rooms("modulate", options, False):
        forwards[name] = partial(_fused, masked, given.target, agm.ModulationState(shape[0], device), name)
    compiled = shape in COMPILED_SHAPES and not options.quick
    for name, kind in (("sequential", Sequential), ("vectorised", Vectorised), ("compiled", Compiled)):
        if options.takes(name) and (name != "compiled" or compiled):
            torch.compiler.reset()
            rival = kind(nn.Linear(1, 1).to(device), tuple("abcdef"[: shape[0]]), given.alpha, given.max_gap)
            forwards[name] = partial(_rival, rival, masked, given.target)
    calls = {name: partial(_with_backward, forward, masked, grad) for name, forward in forwards.items()}
    wanted = calls[BASELINE]()
    for name, call in calls.items():
        if name != BASELINE:
            message = partial("{1}\n{0} does not compute what the reference does".format, name)
            torch.testing.assert_close(call(), wanted, rtol=1e-3, atol=1e-4, msg=message)
    return calls


def _fused(masked: Tensor, target: Tensor, state: agm.ModulationState, backend: str) -> Tensor:
    return agm.fused_modulate(masked, target, state, alpha=1.1, backend=backend)


def _rival(rival: Any, masked: Tensor, target: Tensor) -> Tensor:
    rows = list(masked.unbind()) if not isinstance(rival, Compiled) else list(masked)
    result: Tensor = rival.modulate(rows, target)
    return result


def _with_backward(forward: Callable[[], Tensor], masked: Tensor, grad: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(forward(), masked, grad)
    return result


def extras(row: Mapping[str, Any]) -> str:
    rate = row["bytes"] / row["seconds"]
    launches = f"  {row['launches']} launches" if "launches" in row else ""
    return f"{rate / 1e9:7.1f} GB/s, {100 * rate / row['copy_bandwidth']:4.0f} % of a copy{launches}"
