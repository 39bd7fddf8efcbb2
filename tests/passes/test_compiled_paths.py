"""Steps of networks whose encoders are named by path under torch.compile: one graph, and the numbers of eager mode."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import agm

NAMES = ("audio", "visual", "text")
SIZES = {"audio": 6, "visual": 4, "text": 5}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Net(nn.Module):
    def __init__(self, modalities: int, additive: bool = False) -> None:
        super().__init__()
        self.names = NAMES[:modalities]
        for name in self.names:
            encoder = nn.Sequential(nn.Linear(SIZES[name], 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
            setattr(self, f"{name}_net", encoder)
        head = (nn.Linear(8 * modalities, 5),) if additive else (nn.Linear(8 * modalities, 8), nn.Tanh())
        self.head = nn.Sequential(*head) if additive else nn.Sequential(*head, nn.Linear(8, 5))

    def encode(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, f"{name}_net")(x)  # type: ignore[no-any-return]

    def fused(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([self.encode(name, x) for name, x in inputs.items()], 1))  # type: ignore[no-any-return]

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor | None = None) -> Tensor:
        return self.fused({"audio": audio, "visual": visual} | ({} if text is None else {"text": text}))


class Broken(Net):
    """Its graph breaks."""

    def encode(self, name: str, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().encode(name, x)


class Frozen(Net):
    """Its encoder of sound runs without gradients."""

    def encode(self, name: str, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(name != "audio"):
            return super().encode(name, x)


class Frames(Net):
    """Two frames a sample, which go through the encoder as samples do."""

    def encode(self, name: str, x: Tensor) -> Tensor:
        if name != "visual":
            return super().encode(name, x)
        frames = torch.stack([x, x.flip(1)], 1).flatten(0, 1)
        return self.visual_net(frames).unflatten(0, (-1, 2)).mean(1)  # type: ignore[no-any-return]


class Scaling(Net):
    """Writes to what it is given before it is encoded."""

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor | None = None) -> Tensor:
        visual += 1
        return super().forward(audio, visual)


class Mixing(Net):
    """Gives the encoder of audio rows of both modalities."""

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor | None = None) -> Tensor:
        audio[:, :4] += visual
        return super().forward(audio, visual)


class Scaled(Net):
    def forward(  # type: ignore[override]
        self, audio: Tensor, visual: Tensor, scale: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        assert scale is not None
        return super().forward(audio * scale[:, None], visual)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch(modalities: int, seed: int, size: int) -> tuple[dict[str, Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(5, (size,), generator=random)
    names = NAMES[:modalities]
    return {n: torch.randn(size, SIZES[n], generator=random, dtype=torch.float64) for n in names}, target


def engine(net: nn.Module, modalities: int, **options: Any) -> agm.AGM:
    names = NAMES[:modalities]
    paths = {name: f"{name}_net" for name in names}
    return agm.AGM(net.double(), names, alpha=2.0, encoders=paths, **options)


def pair(kind: Callable[..., nn.Module], modalities: int, **options: Any) -> tuple[agm.AGM, agm.AGM]:
    torch.manual_seed(0)
    model = engine(kind(modalities), modalities, **options)
    return model, copy.deepcopy(model)


def step(call: Callable[..., Tensor], model: agm.AGM, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
    """The loss of a step, which leaves the gradients."""
    model.zero_grad()
    loss = F.cross_entropy(call(**{name: x.clone() for name, x in inputs.items()}, target=target), target)
    loss.backward()
    return loss.detach()


def assert_equal(model: agm.AGM, eager: agm.AGM) -> None:
    for (name, left), right in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()), **EXACT)


@pytest.mark.parametrize(
    ("modalities", "masked", "additive", "dynamic"),
    [(2, "shared", False, None), (3, "exact", False, True), (3, "shared", True, True)],
)
def test_one_graph_and_at_most_one_more_for_other_sizes(
    modalities: int, masked: str, additive: bool, dynamic: bool | None
) -> None:
    model, eager = pair(lambda m: Net(m, additive), modalities, masked=masked)
    # AOT autograd has the tracer begin again when it has made the settings of a dynamic graph constants.
    counter = CompileCounterWithBackend("eager" if dynamic else "aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=counter)
    for number, (size, graphs) in enumerate(((8, 1), (8, 1), (6, 2), (7, 2))):
        given = batch(modalities, number, size)
        torch.testing.assert_close(step(compiled, model, *given), step(eager, eager, *given), **EXACT)
        assert_equal(model, eager)
        assert counter.frame_count == (1 if dynamic else graphs)
    assert not counters["graph_break"]


def test_eager_steps_in_between_compile_nothing_anew() -> None:
    model, eager = pair(Net, 2)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for number, call in enumerate((model, compiled, model, compiled)):
        given = batch(2, number, 8)
        step(call, model, *given), step(eager, eager, *given)
        assert_equal(model, eager)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("kind", "looked"), [(Frames, False), (Frames, True), (Scaling, False), (Mixing, True)])
def test_computed_rows_are_encoded_as_in_eager_mode(kind: type[Net], looked: bool) -> None:
    model, eager = pair(kind, 2)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for number, call in enumerate((model if looked else compiled, compiled, compiled)):
        given = batch(2, number, 8)
        step(call, model, *given), step(eager, eager, *given)
        assert_equal(model, eager)
    assert counter.frame_count == 1


def test_an_encoder_without_gradients() -> None:
    model, eager = pair(Frozen, 2, masked="shared")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for number in range(2):
        given = batch(2, number, 8)
        step(compiled, model, *given), step(eager, eager, *given)
        assert_equal(model, eager)
    assert model.module.audio_net[0].weight.grad is None


def test_a_step_whose_graph_breaks_is_one_of_eager_mode() -> None:
    """Once each function was compiled by itself: the first batch's comparison made torch raise an AttributeError."""
    model, eager = pair(Broken, 2)
    compiled = torch.compile(model, backend="eager")
    for number in range(3):
        given = batch(2, number, 8)
        step(compiled, model, *given), step(eager, eager, *given)
        assert_equal(model, eager)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        step(torch.compile(model, fullgraph=True, backend="eager"), model, *batch(2, 0, 8))


def test_after_an_eager_step_computed_rows_are_encoded_once() -> None:
    """Frames of 8 samples: 16 rows in the joint pass and 18 in the masked one, of which there are 32 written out."""
    for looked, expected in ((False, [16, 32]), (True, [16, 18])):
        torch._dynamo.reset()
        model, _ = pair(Frames, 2)
        if looked:
            step(model, model, *batch(2, 0, 8))
        rows = []

        def count(graph: torch.fx.GraphModule, _: Any, rows: list[int] = rows) -> Callable[..., Any]:
            for node in graph.graph.nodes:
                if node.op == "call_function" and node.target is torch._C._nn.linear:
                    shape = node.meta["example_value"].shape
                    if node.args[0].meta["example_value"].shape[1] == SIZES["visual"]:
                        rows.append(shape[0])
            return graph.forward

        step(torch.compile(model, fullgraph=True, backend=count), model, *batch(2, 1, 8))
        assert rows == expected


def test_shared_features_of_computed_rows_need_an_eager_step_first() -> None:
    model, eager = pair(Frames, 2, masked="shared")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match="Take one training step with the model as it is before it is compiled"
    ):
        step(compiled, model, *batch(2, 0, 8))
    torch._dynamo.reset()
    model, eager = pair(Frames, 2, masked="shared")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for number, call in enumerate((model, compiled, compiled)):
        given = batch(2, number, 8)
        step(call, model, *given), step(eager, eager, *given)
        assert_equal(model, eager)


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_other_arguments_and_missing_modalities(masked: str) -> None:
    model, eager = pair(Scaled, 2, masked=masked)
    random = torch.Generator().manual_seed(3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for number, call in enumerate((model, compiled, compiled)):
        inputs, target = batch(2, number, 8)
        inputs["scale"] = torch.rand(8, generator=random, dtype=torch.float64)
        inputs["present"] = torch.rand(8, 2, generator=random) < 0.7
        step(call, model, inputs, target), step(eager, eager, inputs, target)
        assert_equal(model, eager)


def test_an_absent_input_a_sample() -> None:
    """A padding mask that stays makes every absent row another one."""

    class Masked(nn.Module):
        def __init__(self, modalities: int) -> None:
            super().__init__()
            self.audio_net, self.visual_net, self.head = nn.Linear(6, 8), Padded(), nn.Linear(16, 5)

        def forward(self, audio: Tensor, visual: tuple[Tensor, Tensor]) -> Tensor:
            return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))  # type: ignore[no-any-return]

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
            x, mask = given
            return self.layer(x) * (1 + mask.double().sum(1, keepdim=True))  # type: ignore[no-any-return]

    model, eager = pair(Masked, 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for number in range(2):
        inputs, target = batch(2, number, 8)
        mask = torch.rand(8, 3) < 0.5
        for call, own in ((compiled, model), (eager, eager)):
            own.zero_grad()
            F.cross_entropy(call(inputs["audio"], (inputs["visual"], mask), target=target), target).backward()
        assert_equal(model, eager)


def test_kept_absent_features_are_computed_in_every_compiled_step() -> None:
    options = {"masked": "shared", "absent_gradient": False}
    model, eager = pair(Net, 2, **options, absent_refresh=4)
    eager = engine(eager.module, 2, **options)
    step(model, model, *batch(2, 0, 8)), step(eager, eager, *batch(2, 0, 8))
    with torch.no_grad():
        for parameter in (*model.module.parameters(), *eager.module.parameters()):
            parameter.mul_(1.5)
    given = batch(2, 1, 8)
    step(torch.compile(model, fullgraph=True, backend="eager"), model, *given), step(eager, eager, *given)
    assert_equal(model, eager)
