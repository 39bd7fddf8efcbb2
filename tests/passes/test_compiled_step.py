"""The whole step as one graph: forward, loss, backward and optimizer, for all steps, epochs and batch sizes."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

import agm

MODALITIES = ("audio", "visual")
SIZES = (12, 12, 9)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.visual = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio(audio), self.visual(visual)], 1))


class Factorised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        whole = Whole()
        self.encoders = nn.ModuleDict({"audio": whole.audio, "visual": whole.visual})
        self.head = whole.head

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        yield


def batch(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(5, (size,), generator=random)
    return torch.randn(size, 6, generator=random), torch.randn(size, 4, generator=random), target


def whole_step(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """SGD with momentum in the functional form that torch.optim.SGD itself calls."""
    parameters = list(model.parameters())
    momenta: list[Tensor | None] = [torch.zeros_like(p) for p in parameters]

    def step(audio: Tensor, visual: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(model(audio=audio, visual=visual, target=target), target)
        gradients = list(torch.autograd.grad(loss, parameters))
        with torch.no_grad():
            sgd(
                parameters,
                gradients,
                momenta,
                foreach=True,
                weight_decay=0.0,
                momentum=0.9,
                lr=0.05,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
        return loss.detach()

    return step


def engine(kind: type[nn.Module], **options: Any) -> agm.AGM:
    torch.manual_seed(0)
    return agm.AGM(kind(), MODALITIES, alpha=2.0, **options)


@pytest.mark.parametrize(
    ("kind", "options", "graphs"),
    [
        (Whole, {}, 1),
        (Factorised, {}, 1),
        (Factorised, {"start": 1, "stop": 3}, 2),  # one with and one without modulation
        (Factorised, {"start": 1, "stop": 3, "outside": "published"}, 3),  # and one with the last coefficients
    ],
    ids=["whole", "factorised through AOT autograd", "window", "published window"],
)
def test_one_graph_for_all_steps_epochs_and_two_sizes(
    kind: type[nn.Module], options: dict[str, Any], graphs: int
) -> None:
    model = engine(kind, **options)
    eager = copy.deepcopy(model)
    compilations = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compilations.append(graph)
        return graph.forward

    # AOT autograd has the tracer begin again when it has made the settings constants, which is no recompilation.
    backend = "aot_eager" if kind is Factorised and graphs == 1 else count
    step, expected = torch.compile(whole_step(model), fullgraph=True, dynamic=True, backend=backend), whole_step(eager)
    with torch._dynamo.config.patch(error_on_recompile=graphs == 1):
        for epoch in range(4):
            model.epoch = eager.epoch = epoch
            for number, size in enumerate(SIZES):
                inputs = batch(10 * epoch + number, size)
                torch.testing.assert_close(step(*inputs), expected(*inputs))
    assert len(compilations) == (graphs if backend is count else 0)
    torch.testing.assert_close(model.state_dict(), eager.state_dict())
    assert model.modulator.state.step == 3 * (2 if graphs == 2 else 4)


def test_without_dynamic_shapes_a_second_size_is_the_last_to_be_compiled() -> None:
    """The number of samples was once hashed, which bound even a dynamic graph to it."""
    model = engine(Whole)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(error_on_recompile=False):
        step = torch.compile(whole_step(model), fullgraph=True, backend=count)
        for size in (12, 9, 7, 12):
            step(*batch(size, size))
    assert len(graphs) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_of_the_whole_step() -> None:
    """Captured once and replayed: the same weights and running scores as step by step."""
    model = engine(Factorised).cuda()
    eager = copy.deepcopy(model)
    step, expected = whole_step(model), whole_step(eager)
    batches = [[x.cuda() for x in batch(seed, 12)] for seed in range(6)]
    static = [x.clone() for x in batches[0]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in batches[:3]:
            for place, value in zip(static, inputs, strict=True):
                place.copy_(value)
            step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*static)
    for inputs in batches[3:]:
        for place, value in zip(static, inputs, strict=True):
            place.copy_(value)
        graph.replay()
    for inputs in batches:
        expected(*inputs)
    torch.testing.assert_close(model.state_dict(), eager.state_dict())
