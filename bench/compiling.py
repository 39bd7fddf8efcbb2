"""A training step in eager mode, under `torch.compile`, and in a CUDA graph: joint training and AGM."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import agm
from bench.cases import Built, Case, Options
from bench.networks import NETWORKS
from bench.step import LEARNING_RATE, selected

BASELINE = "joint, eager"
OWN = ("exact, eager", "exact, compiled", "exact, graph", "shared, eager", "shared, compiled", "shared, graph")
DEFAULT = "small"


def cases(options: Options) -> Iterator[Case]:
    for name in options.networks or (DEFAULT,):
        network = NETWORKS[name]
        chosen = selected(network, options)
        for fusion, count in chosen if options.fusions or options.modalities else chosen[:1]:
            batch = options.batch or (network.batch if options.device.type == "cuda" else network.batch_on_cpu)
            facts = {
                "op": "compiled step",
                "network": name,
                "fusion": fusion,
                "modalities": count,
                "batch": batch,
                "shape": f"M={count} B={batch} C={network.classes}",
                "dtype": "float32",
            }
            yield Case(facts, BASELINE, OWN, _builder(name, fusion, count, batch, options))


def _builder(name: str, fusion: str, count: int, batch: int, options: Options) -> Callable[[], Built]:
    def build() -> Built:
        torch.compiler.reset()
        torch.manual_seed(0)
        network = NETWORKS[name]
        module = network.build(fusion, count).to(options.device)
        inputs, target = network.inputs(count, batch, options.device)
        optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=0.9)
        models: dict[str, Callable[..., Tensor]] = {"joint": module}
        settings: dict[str, Any] = {"alpha": network.alpha, "max_gap": network.max_gap}
        for masked in ("exact", "shared"):
            models[masked] = agm.AGM(module, masked=masked, **settings).to(options.device)
        calls: dict[str, Callable[[], object]] = {}
        for kind, model in models.items():
            arguments = inputs if kind == "joint" else {**inputs, "target": target}
            eager = _step(model, arguments, target, optimizer)
            calls[f"{kind}, eager"] = eager
            if not options.quick and options.takes(f"{kind}, compiled"):
                eager()  # the first batch verifies the encoders, which is not to be traced
                calls[f"{kind}, compiled"] = _step(torch.compile(model), arguments, target, optimizer)
            if options.device.type == "cuda" and options.takes(f"{kind}, graph"):
                calls[f"{kind}, graph"] = captured(eager)
        return Built({key: call for key, call in calls.items() if key == BASELINE or options.takes(key)})

    return build


def _step(
    model: Callable[..., Tensor], arguments: Mapping[str, Tensor], target: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(**arguments), target).backward()
        optimizer.step()

    return run


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The replay of a step that has been captured in a CUDA graph, after a few steps on a stream of their own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def extras(row: Mapping[str, Any]) -> str:
    return ""
