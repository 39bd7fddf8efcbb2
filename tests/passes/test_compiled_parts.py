"""Networks of which a part is compiled, or whose calls are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .networks import BOTH, rows

INPUTS = {"audio": rows(5, 4, seed=1), "visual": rows(5, 4, seed=2)}


class TestCompiledParts:
    """Each either computes what the network does or says what to do; none is compiled anew from step to step."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.audio_net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
            self.visual_net = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))

    class Encoder(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:  # torch compiles no frame of its own modules by itself
            return super().forward(x)

    class Fusing(Net):
        @property
        def encoders(self) -> dict[str, nn.Module]:
            return {"audio": self.audio_net, "visual": self.visual_net}

        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            return self.head(torch.cat([features["audio"], features["visual"]], 1))

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual)})

    @pytest.mark.parametrize(
        ("kind", "part", "by_path"),
        [
            (Net, "", False),
            (Fusing, "", False),
            (Net, "audio_net", True),
            (Fusing, "audio_net", False),
            (Net, "head", True),
            (Fusing, "head", False),
        ],
    )
    def test_step(self, kind: type[nn.Module], part: str, by_path: bool) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        network, counted = kind().double(), 0

        def counting(graph: Any, example: Any) -> Any:
            nonlocal counted
            counted += 1
            return graph

        if part:
            setattr(network, part, torch.compile(network.get_submodule(part), backend=counting))
        else:
            network.compile(backend=counting)
        network.audio_net._compile_kwargs = {"backend": counting}  # as Lightning does, once it is imported
        model = agm.AGM(network, tuple(BOTH), encoders=BOTH if by_path else None)
        target = torch.tensor([0, 1, 2, 0, 1])
        for number in range(5):
            model(**INPUTS, target=target).sum().backward()
            if number == 1:
                compiled = counted
        assert counted == compiled > 0
        if part == "audio_net":
            assert "it is compiled" in str(model.plan()) or "norms would take" in str(model.plan())
        result = agm.verify(model, INPUTS, target)
        assert result.ok, result

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("by_path", [False, True])
    def test_an_encoder_is_not_broken_up_where_it_need_not_be(self, masked: Any, by_path: bool) -> None:
        torch._dynamo.reset()
        graphs: list[Any] = []
        network = self.Fusing().double()
        network.audio_net = self.Encoder(nn.Linear(4, 6), nn.Dropout(0.2)).double()
        network.audio_net.compile(backend=lambda graph, example: graphs.append(graph) or graph)
        model = agm.AGM(network, masked=masked, encoders=BOTH if by_path else None)
        assert "it is compiled" in str(model.plan())
        for _ in range(4):
            model(**INPUTS, target=torch.tensor([0, 1, 2, 0, 1]))
        ops = [[node.target for node in graph.graph.nodes if node.op == "call_function"] for graph in graphs]
        assert ops
        assert min(map(len, ops)) > 1  # the layers of one pass are one graph

    @pytest.mark.parametrize("compile_", [lambda net: torch.compile(net), lambda net: net.compile() or net])
    def test_a_compiled_network_whose_encoders_are_named_by_path(self, compile_: Any) -> None:
        model = agm.AGM(compile_(self.Net()), tuple(BOTH), encoders=BOTH)
        with pytest.raises(ValueError, match=r"Compile the encoders"):
            model(**INPUTS, target=torch.zeros(5).long())
