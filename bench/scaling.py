"""How the head and the step grow with the batch, the classes and the modalities."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import agm
from agm.models import LateFusion, SmallCNN
from bench import step
from bench.cases import Built, Case, Options
from bench.measure import copy_bandwidth
from bench.networks import Encoder, Network
from bench.shared import additive_steps, steps

BASELINE = "reference"
OWN = ("auto",)

BATCHES = tuple(4**power for power in range(9))  # 1 to 65536, C = 10
CLASSES = (*(2 * 4**power for power in range(8)), 2**17)  # 2 to 131072, B = 64
MODALITIES = (2, 3, 4, 6, 8, 12, 16)  # additive, B = 64, C = 101
BATCH, FEW_CLASSES, SOME_CLASSES = 64, 10, 101  # where they are not what grows

# Batch norm makes the exact mode need a pass of its own; small, since sixteen of them make a network.
NETWORK = Network(
    "many",
    (Encoder("m", (1, 28, 28), lambda pool: SmallCNN(1, 16, pool=pool)),),
    classes=10,
    batch=64,
    batch_on_cpu=64,
    alpha=1.0,
    cases=(),
    most_rivals=3,
)
# Rows of the fusion, beyond which a step that runs it on every subset is left out.
MOST_ROWS = 2**14


def cases(options: Options) -> Iterator[Case]:
    most = 3 if options.quick else None
    if not options.ops or "head" in options.ops:
        for batch in BATCHES[:most]:
            yield _head("batch", 2, batch, FEW_CLASSES, options)
        for classes in CLASSES[:most]:
            yield _head("classes", 2, BATCH, classes, options)
        for count in MODALITIES[:most]:
            yield _additive(count, BATCH, SOME_CLASSES, options)
    if not options.ops or "step" in options.ops:
        for count in MODALITIES[:most]:
            yield _step(count, options)


def _facts(axis: str, modalities: int, batch: int, classes: int) -> dict[str, Any]:
    names = {"batch": batch, "classes": classes, "modalities": modalities}
    shape = f"M={modalities} B={batch} C={classes}"
    return {"axis": axis, **names, "shape": shape, "dtype": "float32"}


def _head(axis: str, modalities: int, batch: int, classes: int, options: Options) -> Case:
    def build() -> Built:
        given = steps.step(modalities, batch, classes, torch.float32).on(options.device.type)
        target = given.target.clamp(min=0)
        masked, grad = given.masked_logits.requires_grad_(), given.masked_logits[-1].detach().clone()
        calls = {}
        for name in ("auto", BASELINE):
            state = agm.ModulationState(modalities, options.device)
            calls[name] = partial(_fused, masked, target, grad, state, name)
        moved = (2 * (2**modalities - 1) + 1) * batch * classes * 4
        return Built(calls, lambda: _limits(calls, moved, options))

    return Case({"op": "fused_modulate", **_facts(axis, modalities, batch, classes)}, BASELINE, OWN, build)


def _fused(masked: Tensor, target: Tensor, grad: Tensor, state: agm.ModulationState, backend: str) -> object:
    return torch.autograd.grad(agm.fused_modulate(masked, target, state, backend=backend), masked, grad)


def _additive(modalities: int, batch: int, classes: int, options: Options) -> Case:
    def build() -> Built:
        given = additive_steps.additive_step(modalities, batch, classes, torch.float32).on(options.device.type)
        present, target = given.present.requires_grad_(), given.target.clamp(min=0)
        grad = present[0].detach().clone()
        calls = {}
        for name in ("auto", BASELINE):
            state = agm.ModulationState(modalities, options.device)
            arguments = present, given.absent, given.bias, target, grad, state, name
            calls[name] = partial(_fused_additive, *arguments)
        moved = (2 * modalities + 2) * batch * classes * 4  # present, logits, their gradient, and that of present
        return Built(calls, lambda: _limits(calls, moved, options))

    facts = _facts("modalities", modalities, batch, classes)
    return Case({"op": "fused_modulate_additive", **facts}, BASELINE, OWN, build)


def _fused_additive(
    present: Tensor,
    absent: Tensor,
    bias: Tensor,
    target: Tensor,
    grad: Tensor,
    state: agm.ModulationState,
    backend: str,
) -> object:
    logits = agm.fused_modulate_additive(present, absent, target, state, bias=bias, backend=backend)
    return torch.autograd.grad(logits, present, grad)


def _limits(calls: Mapping[str, Callable[[], object]], moved: int, options: Options) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": moved, "copy_bandwidth": copy_bandwidth(options.device)} for name in calls}


def _step(count: int, options: Options) -> Case:
    """A late fusion of as many small CNNs; variants whose plan would run the fusion on too many rows are left out."""
    batch = NETWORK.batch
    variants = [name for name in ("exact", "shared") if fusion_rows(count, name, batch) <= MOST_ROWS]
    if count <= NETWORK.most_rivals:
        variants.insert(0, "sequential")
    chosen = Options(options.device, options.rounds, variants=tuple(variants) or ("joint",))
    made = step.case(NETWORK, "late", count, chosen)
    return Case({**made.facts, "axis": "modalities"}, made.baseline, made.own, made.build)


def fusion_rows(count: int, variant: str, batch: int) -> int:
    """The most rows that go through one part of the network that is no encoder, by the plan of AGM."""
    encoders = {name: SmallCNN(1, 4) for name in NETWORK.modalities(count)}
    model = agm.AGM(LateFusion(encoders, 2), masked="shared" if variant == "shared" else "exact")
    rows: dict[str, int] = {}
    for line in model.plan().lines:
        if not line.part.startswith("encoder"):
            rows[line.part] = rows.get(line.part, 0) + line.count(batch)
    return max(rows.values(), default=0)


def extras(row: Mapping[str, Any]) -> str:
    if row["op"] == "step":
        return step.extras(row)
    rate = row["bytes"] / row["seconds"]
    return f"{rate / 1e9:7.1f} GB/s, {100 * rate / row['copy_bandwidth']:4.0f} % of a copy"
