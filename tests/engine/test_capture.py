"""What a step that is captured in a CUDA graph must not do, as far as a CPU shows it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import agm
from agm._module_state.capture import is_capturing, is_recorded
from agm._module_state.generators import kept_generators
from agm._module_state.structure import Structure
from agm._module_state.untouched import untouched
from agm._module_state.values import kept_values
from agm._one_pass.records import Origins
from agm._one_pass.row_split import RowSplit
from agm.shapley.weights import weights_on

PATHS = {"audio": "audio_net", "visual": "visual_net"}
_READING = ("_local_scalar_dense", "nonzero", "equal", "allclose", "is_nonzero", "masked_select", "_unique", "item")
_COPYING = ("lift_fresh", "lift_fresh_copy", "_pin_memory", "is_pinned")  # of what Python has just made on the host


class Capture(TorchDispatchMode):
    """Refuses what reads from the device or copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _READING, f"{func} reads from the device"
        assert name not in _COPYING, f"{func} copies from the host"
        return func(*args, **kwargs or {})


class Meeting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.roll(1, 0)


class Net(nn.Module):
    def __init__(self, additive: bool = False, meets: bool = False) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.visual_net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        if meets:
            self.visual_net.append(Meeting())
        head = nn.Linear(16, 3)
        self.head = head if additive else nn.Sequential(nn.Linear(16, 16), nn.ReLU(), head)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))  # type: ignore[no-any-return]


class Factorised(nn.Module):
    def __init__(self, **settings: bool) -> None:
        super().__init__()
        net = Net(**settings)
        self.encoders = nn.ModuleDict({"audio": net.audio_net, "visual": net.visual_net})
        self.head = net.head

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))  # type: ignore[no-any-return]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})


def step(model: agm.AGM, seed: int, present: bool = False) -> None:
    random = torch.Generator().manual_seed(seed)
    audio, visual = torch.randn(8, 4, generator=random), torch.randn(8, 5, generator=random)
    target = torch.randint(3, (8,), generator=random)
    given = {"present": torch.rand(8, 2, generator=random) < 0.7} if present else {}
    with Capture() if is_capturing() else torch.enable_grad():
        F.cross_entropy(model(audio, visual, target=target, **given), target).backward()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, torch says that the stream is capturing, and its generators on a GPU cannot be read."""

    def forbidden(name: str) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            raise AssertionError(f"{name} is not permitted while the stream is capturing")

        return call

    def begin() -> None:
        with Capture():  # torch lists its functions when a first mode is entered
            torch.ones(1).neg()
        # The range of the class indices is read on a CPU alone.
        monkeypatch.setattr("agm.ops._checks.check_classes", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        for name in ("get_rng_state", "set_rng_state", "synchronize", "current_device", "mem_get_info"):
            monkeypatch.setattr(torch.cuda, name, forbidden(name))
        monkeypatch.setattr(torch, "get_device_module", forbidden("get_device_module"))

    return begin


@pytest.mark.parametrize("kind", [Net, Factorised])
@pytest.mark.parametrize("settings", [{}, {"additive": True}, {"meets": True}], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"passes": "auto"},
        {"passes": "two"},
        {"masked": "shared"},
        {"masked": "shared", "absent_gradient": False, "absent_refresh": 4},
    ],
    ids=str,
)
def test_a_captured_step_reads_nothing(
    kind: Callable[..., nn.Module], settings: dict[str, bool], options: dict[str, Any], captures: Callable[[], None]
) -> None:
    model = agm.AGM(kind(**settings), tuple(PATHS), encoders=PATHS if kind is Net else None, **options)
    for present in (False, True):
        step(model, 0, present)
    steps = model.modulator.state.step.item()
    plan = str(model.plan())
    captures()
    for present in (False, True):
        step(model, 1, present)
    assert model.modulator.state.step.item() == steps + 2
    assert str(model.plan()) == plan or "absent_refresh" in options


def test_a_network_of_one_piece(captures: Callable[[], None]) -> None:
    model = agm.AGM(Net(), tuple(PATHS))
    step(model, 0)
    captures()
    step(model, 1)


def test_the_mode_sees_what_reads_and_copies() -> None:
    for wrong in (lambda: torch.ones(2).sum().item(), lambda: torch.tensor([1.0]), lambda: torch.ones(2).nonzero()):
        with pytest.raises(AssertionError, match=r"the device|the host"), Capture():
            wrong()


def test_kept_features_are_computed_by_a_captured_step(captures: Callable[[], None]) -> None:
    """What is kept lies in memory of its own, which no replay would renew, and a graph's own may not leave it."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "encoders": PATHS}
    net = Net()
    net.audio_net[2] = nn.Identity()  # type: ignore[assignment]
    model = agm.AGM(net, tuple(PATHS), absent_refresh=4, **options)
    step(model, 0)
    every = agm.AGM(model.module, tuple(PATHS), **options)
    every.modulator.state.load_state_dict(model.modulator.state.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    expected = []
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    kept = dict(model._passes.absent_features._kept)
    for one in (every, model):
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])
        net.zero_grad()
        if one is model:
            captures()
        step(one, 1)
        expected.append([parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*expected)
    assert kept
    assert model._passes.absent_features._kept == kept


def test_a_first_step_and_drawn_subsets_are_refused(captures: Callable[[], None]) -> None:
    first, drawn = agm.AGM(Net(), tuple(PATHS)), agm.AGM(Net(), tuple(PATHS), subsets=2)
    step(drawn, 0)
    captures()
    with pytest.raises(RuntimeError, match="a training step before one that is captured"):
        step(first, 0)
    with pytest.raises(RuntimeError, match=r"no `subsets`.*got subsets=2"):
        step(drawn, 0)
    first.eval()
    with Capture():
        first(torch.zeros(8, 4), torch.zeros(8, 5))


def test_generators_of_a_gpu_are_not_read(captures: Callable[[], None]) -> None:
    class OnGPU:
        is_cuda, device = True, torch.device("cuda", 0)

    captures()
    kept_generators(torch.device("cuda", 0))()
    split = RowSplit(2, 4, Origins([], []))
    split.draws(OnGPU())  # type: ignore[arg-type]
    split.undo()
    with untouched(nn.BatchNorm1d(2), [torch.empty(2, device="meta")]):
        pass


def test_a_captured_step_that_fails_reads_nothing(captures: Callable[[], None]) -> None:
    norm = nn.BatchNorm1d(2)
    captures()
    with Capture():
        put_back = kept_values(Structure(norm), [], [])
        put_back()


def test_nobody_is_asked_where_no_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question whether a stream captures makes a context on a GPU."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: pytest.fail("asked"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not is_capturing()
    assert not is_recorded()


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_a_compiled_step_has_nothing_of_the_host(masked: Any) -> None:
    """`torch.compile(mode="reduce-overhead")` makes no CUDA graph of one that has."""
    torch._dynamo.reset()
    model, names = agm.AGM(Net(), tuple(PATHS), masked=masked, encoders=PATHS), list[str]()

    def note(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        names.extend(getattr(node.target, "__name__", str(node.target)) for node in graph.graph.nodes)
        return graph.forward

    present, target = torch.tensor([[True, True], [True, False]] * 4), torch.zeros(8, dtype=torch.int64)
    compiled = torch.compile(model, fullgraph=True, backend=note)
    compiled(torch.ones(8, 4), torch.ones(8, 5), target=target, present=present)
    assert "arange" in names
    assert not {"tensor", "as_tensor", "from_numpy", "item", "tolist", "cpu", "pin_memory", "nonzero"} & set(names)


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_compiled_weights_are_the_same(modalities: int) -> None:
    torch._dynamo.reset()
    weights = torch.compile(weights_on, fullgraph=True, backend="eager")(torch.device("cpu"), modalities)
    assert torch.equal(weights, agm.subset_weights(modalities))
