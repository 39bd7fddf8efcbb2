"""What a step leaves in a network is what one joint pass leaves: attributes, containers, parameters, hooks."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import agm
from agm._module_state import undo
from agm._module_state.replace_forward import answering
from agm._module_state.threads import lock_of
from agm._module_state.traces import Traces
from agm._module_state.undo import all_or_nothing

from .plain_network import ENCODERS, NAMES, TARGET, Net, inputs

SHARED: dict[str, Any] = {"encoders": ENCODERS, "masked": "shared"}
OPTIONS: list[dict[str, Any]] = [{}, {"encoders": ENCODERS}, SHARED, {"max_rows": 6}]


class Meter:
    total = 0.0

    def update(self, value: Tensor) -> None:
        self.total += float(value.detach())


class Keeping(Net):
    """Keeps a loss, features, counters, lists and a meter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.history, self.meter = 0, {"norms": []}, Meter()
        self.count = torch.zeros(())

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        hidden = self.hidden(audio, visual)
        self.loss, self.features = hidden.square().mean(), hidden
        self.calls += 1
        self.history["norms"].append(float(hidden.detach().norm()))
        self.meter.update(hidden.mean())
        self.count += len(hidden)
        return self.head(hidden)


class Momentum(Net):
    """Moves a momentum encoder and a queue in every forward, in its mode or not (as ALBEF and MoCo do)."""

    def __init__(self, write: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.write = write
        self.slow = copy.deepcopy(self.audio_net).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(8, 5, dtype=torch.float64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        with torch.no_grad():
            for own, slow in zip(self.audio_net.parameters(), self.slow.parameters(), strict=True):
                self.write(slow, own)
            self.queue[int(self.place) % 8] = self.slow(audio).mean(0)
            self.place += 1
        return super().forward(audio, visual)


def _assign(slow: Tensor, own: Tensor) -> None:
    slow.data = slow.data * 0.9 + own.data * 0.1


def _in_place(slow: Tensor, own: Tensor) -> None:
    slow.data.mul_(0.9).add_(own.data, alpha=0.1)


def _lerp(slow: Tensor, own: Tensor) -> None:
    slow.lerp_(own, 0.1)


def plain_steps(network: Net, steps: int) -> Net:
    network = copy.deepcopy(network)
    for _ in range(steps):
        network(**inputs())
    return network


@pytest.mark.parametrize("options", OPTIONS)
def test_attributes_are_those_of_the_joint_pass(options: dict[str, Any]) -> None:
    expected = plain_steps(Keeping(), 3)
    model = agm.AGM(Keeping(), NAMES, **options)
    for _ in range(3):
        model(**inputs(), target=TARGET)
    network = model.module
    assert type(network.features) is Tensor
    torch.testing.assert_close(network.features, expected.features, rtol=0, atol=1e-12)
    torch.testing.assert_close(network.loss, expected.loss, rtol=0, atol=1e-12)
    assert network.calls == 3
    assert network.meter.total == pytest.approx(expected.meter.total, rel=1e-12)
    assert network.history["norms"] == pytest.approx(expected.history["norms"], rel=1e-12)
    assert float(network.count) == 18
    gradients = [torch.autograd.grad(x.loss, list(x.audio_net.parameters())) for x in (network, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    assert agm.verify(model, inputs(), TARGET).ok


@pytest.mark.parametrize("write", [_assign, _in_place, _lerp])
@pytest.mark.parametrize("options", OPTIONS)
def test_parameters_and_buffers_that_forward_writes_to(options: dict[str, Any], write: Any) -> None:
    expected = plain_steps(Momentum(write), 4).state_dict()
    model = agm.AGM(Momentum(write), NAMES, **options)
    for _ in range(4):
        model(**inputs(), target=TARGET).sum().backward()
    torch.testing.assert_close(model.module.state_dict(), expected, rtol=0, atol=1e-12)
    found = agm.verify(model, inputs(), TARGET)
    assert found.ok, str(found)
    assert found.left["slow.0.weight"] < 1e-12


class Watching(nn.Module):
    """A network with `encoders` and `fuse` that follows what passes through, as a running mean does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({name: nn.Sequential(nn.Linear(4, 5), nn.Tanh()) for name in NAMES})
        self.head = nn.Linear(10, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.double()

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        logits = self.head(torch.cat([features[name] for name in NAMES], 1))
        with torch.no_grad():
            self.mean += logits.mean(0)
            constant = torch.cat([features[name] for name in NAMES], 1)
        return logits + constant.sum(1, keepdim=True)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        inputs = {"audio": audio, "visual": visual}
        return self.fuse({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


@pytest.mark.parametrize(
    "options", [{}, {"masked": "shared"}, {"encoders": {name: f"encoders.{name}" for name in NAMES}}]
)
def test_statistics_under_no_grad_cut_no_gradient(options: dict[str, Any]) -> None:
    """Where rows are deferred it is a statistic that first asks for them."""
    found = agm.verify(agm.AGM(Watching(), NAMES, **options), inputs(), TARGET)
    assert found.ok, str(found)


class Checkpointed(Net):
    """Its encoders count their calls, recomputed ones too, inside activation checkpoints around them."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)
            self.calls = 0
            self.register_buffer("mean", torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            with torch.no_grad():
                self.mean += 1
            return torch.tanh(self.layer(x))

    def __init__(self) -> None:
        super().__init__()
        self.audio_net, self.visual_net = self.Encoder().double(), self.Encoder().double()
        self.encoders = {"audio": self.audio_net, "visual": self.visual_net}

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        inputs = {"audio": audio, "visual": visual}
        return self.fuse({n: checkpoint(self.encoders[n], x, use_reentrant=False) for n, x in inputs.items()})

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features[name] for name in NAMES], 1).square())


@pytest.mark.parametrize("options", [{"masked": "shared"}, SHARED])
def test_a_look_at_gradients_recomputes_nothing_that_stays(options: dict[str, Any]) -> None:
    model, plain = agm.AGM(Checkpointed(), NAMES, **options), Checkpointed()
    seen: list[int] = []
    model.module.audio_net.layer.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    logits = model(**inputs(), target=TARGET)
    assert seen == [6]
    expected = plain(**inputs())
    for network in (model.module, plain):
        assert network.audio_net.calls == 1
        torch.testing.assert_close(network.audio_net.mean, torch.ones(5).double())
    logits.sum().backward()
    expected.sum().backward()
    assert model.module.audio_net.calls == plain.audio_net.calls


class NoTraces(Traces):
    def put_back(self) -> None:
        pass


def test_verify_sees_what_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing were put back, the attributes would be the masked pass's, and verify would say so."""
    model = agm.AGM(Keeping(), NAMES)
    monkeypatch.setattr("agm._module_state.eval_mode.Traces", NoTraces)
    found = agm.verify(model, inputs(), TARGET)
    assert not found.ok
    assert found.left["loss"] > 1e-3
    assert found.left["features"] > 1e-3
    assert "left behind" in str(found)


class TestHooks:
    @pytest.mark.parametrize("options", OPTIONS)
    def test_observers_see_the_joint_pass_alone(self, options: dict[str, Any]) -> None:
        model = agm.AGM(Net(), NAMES, **options)
        seen: list[tuple[str, int]] = []
        network = model.module
        network.head.register_forward_hook(lambda module, args, output: seen.append(("after", len(output))))
        network.head.register_forward_pre_hook(lambda module, args: seen.append(("before", len(args[0]))))
        network.audio_net[0].register_forward_hook(
            lambda module, args, kwargs, output: seen.append(("inside", len(output))), with_kwargs=True
        )
        for _ in range(2):
            seen.clear()
            model(**inputs(), target=TARGET)
            assert sorted(seen) == [("after", 6), ("before", 6), ("inside", 6)]
        assert all(len(module._forward_hooks) <= 1 for module in network.modules())

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("writes", [False, True])
    def test_those_that_act_act_on_masked_rows_too(self, options: dict[str, Any], writes: bool) -> None:
        hook = _doubling if writes else lambda module, args, output: output * 2.0
        network = Net()
        network.head.register_forward_hook(hook)
        found = agm.verify(agm.AGM(network, NAMES, **options), inputs(), TARGET)
        assert found.ok, str(found)


def _doubling(module: nn.Module, args: Any, output: Tensor) -> None:
    """Returns nothing, but writes to what it is given."""
    output.mul_(2.0)


class TestVerify:
    def test_numbers_that_are_not_finite_are_not_ok(self) -> None:
        class Infinite(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return super().forward(audio, visual) / audio.abs().sum(1, keepdim=True)

        found = agm.verify(agm.AGM(Infinite(), NAMES), inputs(), TARGET)
        assert not found.ok
        assert found.worst <= found.tolerance
        assert any("visual" in where for where in found.not_finite)
        assert "absent_gradient=False" in str(found)

    def test_masks_made_of_values(self) -> None:
        class Padding(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                mask = (audio.abs().sum(1) > 0).to(audio)
                return super().forward(audio + mask.unsqueeze(1), visual)

        found = agm.verify(agm.AGM(Padding(), NAMES), inputs(), TARGET)
        assert found.ok
        assert "compares the values of `audio`" in str(found)
        assert not agm.verify(agm.AGM(Net(), NAMES), inputs(), TARGET).advice

    def test_gradients_asked_of_the_input_and_sparse_ones(self) -> None:
        class Asking(Net):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(3, 5, sparse=True).double()

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                hidden = audio[:, None]
                if self.training:
                    hidden.requires_grad = True  # as the feature encoder of wav2vec 2.0
                features = self.audio_net(hidden)[:, 0] + self.table(torch.zeros(len(audio), dtype=torch.int64))
                return self.head(torch.cat([features, self.visual_net(visual)], 1))

        for options in OPTIONS[:3]:
            found = agm.verify(agm.AGM(Asking(), NAMES, **options), inputs(), TARGET)
            assert found.ok, str(found)


class Interrupted(BaseException):
    """As an interrupt from the keyboard, which may come at any line."""


def _interrupting(home: str, line: int) -> Any:
    """Raises when the line with that number, counted from the start, runs in a folder."""
    seen = 0

    def tracing(frame: Any, event: str, arg: Any) -> Any:
        nonlocal seen
        if event == "line" and frame.f_code.co_filename.startswith(home):
            seen += 1
            if seen == line:
                raise Interrupted
        return tracing

    return tracing


class TestInterrupts:
    """An interrupt at any line of the library inside a step: the step is all or nothing."""

    @pytest.mark.parametrize("options", OPTIONS[:3])
    def test_leaves_nothing_behind(self, options: dict[str, Any]) -> None:
        def network() -> Net:
            made = Keeping()
            made.head = nn.Sequential(nn.BatchNorm1d(10), nn.Dropout(0.2), made.head).double()
            return made

        def begun() -> agm.AGM:
            torch.manual_seed(0)
            model = agm.AGM(network(), NAMES, **options)
            model(**inputs(), target=TARGET)
            return model

        through = begun()
        through(**inputs(), target=TARGET)
        all_of_it = self.state(through)
        home, model = agm.__path__[0], begun()
        before = self.state(model)
        count, step, ended = 0, 1, False
        while not ended:
            sys.settrace(_interrupting(home, step))
            try:
                model(**inputs(), target=TARGET)
                ended = True
            except Interrupted:
                count += 1
            finally:
                sys.settrace(None)
            if not ended:
                after = self.state(model)
                whole = after[1:] == all_of_it[1:]  # it came when the step was through
                assert whole or after[1:] == before[1:], f"at line {step} of the step"
                torch.testing.assert_close(after[0], (all_of_it if whole else before)[0], rtol=0, atol=0)
                model = begun() if whole else model
            step += 1 + step // 25  # every line at first, then fewer
        assert count > 40

    @pytest.mark.parametrize("line", range(1, 5))
    def test_where_one_forward_replaces_another_both_are_put_back(self, line: int) -> None:
        """The interrupt comes where the inner one would be put back, so that the outer one's turn is first."""
        module = nn.Linear(2, 2)

        def step() -> None:
            with all_or_nothing(), answering({module: lambda x: x}), answering({module: lambda x: -x}):
                sys.settrace(_interrupting(undo.__file__, line))

        try:
            with pytest.raises(Interrupted):
                step()
        finally:
            sys.settrace(None)
        assert "forward" not in vars(module)

    @staticmethod
    def state(model: agm.AGM) -> tuple[Any, ...]:
        network = model.module
        modes = [module.training for module in network.modules()]
        forwards = ["forward" in vars(module) for module in network.modules()]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        there = (torch.is_grad_enabled(), torch.overrides._len_torch_function_stack())
        there += (torch._C._is_torch_function_enabled(),)
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        return (buffers, torch.get_rng_state().tolist(), modes, forwards, there, hooks, lock_of(model.module).locked())


def test_a_step_after_a_failed_one_is_as_if_it_had_not_been() -> None:
    runs = []
    for fails in (False, True):
        model = agm.AGM(Keeping(), NAMES, encoders=ENCODERS)
        torch.manual_seed(3)
        for step in range(3):
            if fails and step == 1:
                handle = model.module.head.register_forward_hook(lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    model(**inputs(), target=TARGET)
                handle.remove()
            F.cross_entropy(model(**inputs(), target=TARGET), TARGET).backward()
        runs.append([*model.buffers(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*runs, rtol=0, atol=0)
