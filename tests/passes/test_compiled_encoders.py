"""Encoders that `module.compile()` or `torch.compile(module)` compiled: their graphs stay whole, and are the user's."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm
from agm import strategies

X = {"audio": torch.randn(6, 8), "visual": torch.randn(6, 12)}
Y = torch.randint(5, (6,))
PATHS = {"audio": "a", "visual": "v"}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.layers(x)
        return feature


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.v = Encoder(8), Encoder(12)
        self.head = nn.Linear(8, 5)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.a(audio), self.v(visual)], -1))
        return logits


class Protocol(Net):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": self.a, "visual": self.v})

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.head(torch.cat([features["audio"], features["visual"]], -1))
        return logits

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.a(audio), "visual": self.v(visual)})


def own_numbers(graphs: list[int]) -> Callable[..., Any]:
    """A backend whose dropout draws other numbers than torch's, as inductor's does: after a step of the generator."""

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        graphs.append(sum("linear" in str(node.target) for node in graph.graph.nodes))

        def run(*inputs: Tensor) -> Any:
            if any("dropout" in str(node.target) and node.args[2] for node in graph.graph.nodes):
                torch.rand(())
            return graph(*inputs)

        return run

    return backend


def built(kind: type[Net], graphs: list[int]) -> Net:
    torch.manual_seed(0)
    net = kind()
    for encoder in (net.a, net.v):
        encoder.compile(backend=own_numbers(graphs))
    return net


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("kind", [Net, Protocol])
def test_the_graphs_are_those_of_the_encoders(kind: type[Net], masked: str) -> None:
    graphs: list[int] = []
    net = built(kind, graphs)
    model = agm.AGM(net, tuple(X), encoders=PATHS if kind is Net else None, masked=masked)
    torch.manual_seed(3)
    expected = net(**X)
    for _ in range(3):
        torch.manual_seed(3)
        logits = model(**X, target=Y)
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)
        logits.sum().backward()
    assert set(graphs) == {2}  # both linear layers in each
    found = len(graphs)
    # Two encoders, each for the batch, and for few rows in eval mode, whose number may make a graph of its own.
    assert found <= 8
    model(**X, target=Y).sum().backward()
    assert len(graphs) == found
    assert agm.verify(model, X, Y).ok


def test_hooks_of_a_compiled_encoder_see_the_joint_pass_alone() -> None:
    graphs: list[int] = []
    net, seen = built(Net, graphs), []
    net.a.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    model = agm.AGM(net, tuple(X), encoders=PATHS)
    for _ in range(2):
        seen.clear()
        model(**X, target=Y)
    assert seen == [(6, 4)]


def test_strategies_call_what_was_compiled() -> None:
    graphs: list[int] = []
    heads = strategies.linear_heads({"audio": 4, "visual": 4}, 5)
    strategy = strategies.OGM(built(Net, graphs), encoders=PATHS, heads=heads)
    for _ in range(2):
        assert len(list(strategy.steps(X, Y))) == 1
    assert graphs == [2, 2]
