"""AGM around a network: what a user's training loop sees."""

import copy
import gc
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import agm


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1))
        self.visual_net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(12, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


MODALITIES = ("audio", "visual")
PATHS = {"audio": "audio_net", "visual": "visual_net"}


def batch(seed: int = 0, size: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {"audio": torch.randn(size, 4, generator=generator), "visual": torch.randn(size, 5, generator=generator)}
    return inputs, torch.randint(3, (size,), generator=generator)


def engine(**options: object) -> agm.AGM:
    torch.manual_seed(0)
    return agm.AGM(Net(), MODALITIES, **({"alpha": 3.0, "encoders": PATHS} | options))  # type: ignore[arg-type]


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def step(model: agm.AGM, seed: int = 0) -> list[Tensor]:
    inputs, target = batch(seed)
    torch.manual_seed(seed)
    F.cross_entropy(model(**inputs, target=target), target).backward()
    return gradients(model)


def plain_step(network: nn.Module, seed: int = 0) -> list[Tensor]:
    inputs, target = batch(seed)
    torch.manual_seed(seed)
    F.cross_entropy(network(**inputs), target).backward()
    return gradients(network)


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("options", [{"encoders": None}, {"encoders": PATHS, "passes": "two"}])
def test_alpha_zero_is_plain_training_bit_for_bit(options: dict[str, Any]) -> None:
    """Where the joint pass has the batch alone; with other rows beside it numbers are rounded otherwise."""
    model = engine(alpha=0.0, **options)
    network = copy.deepcopy(model.module)
    for seed in range(3):
        assert_equal(step(model, seed), plain_step(network, seed))
    torch.testing.assert_close(model.module.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_is_masked_logits_and_modulator() -> None:
    model = engine()
    network, modulator = copy.deepcopy(model.module), agm.Modulator(MODALITIES, alpha=3.0)
    for seed in range(3):
        inputs, target = batch(seed)
        torch.manual_seed(seed)
        logits = modulator(agm.masked_logits(network, inputs, encoders=PATHS), target)
        F.cross_entropy(logits, target).backward()
        # To rounding: the model knows that this fusion is a sum, and adds up no masked logits.
        torch.testing.assert_close(step(model, seed), gradients(network))
    torch.testing.assert_close(model.modulator.state.values, modulator.state.values, rtol=1e-5, atol=0)


def test_modulation_changes_the_gradient() -> None:
    """The window, from outside: inside it gradients differ from plain training, outside they are the same."""
    model = engine(start=1, stop=2)
    network = copy.deepcopy(model.module)
    same = []
    for epoch in range(3):
        model.epoch = epoch
        pairs = zip(step(model, epoch), plain_step(network, epoch), strict=True)
        same.append(all(torch.equal(a, b) for a, b in pairs))
    assert same == [True, False, True]
    assert model.modulator.state.step.item() == 1


def test_outside_the_window_no_masked_pass_runs() -> None:
    model = engine(start=1)
    inputs, target = batch()
    calls: list[int] = []
    model.module.head.register_forward_hook(lambda m, args, output: calls.append(1) or output)
    model.epoch = 1
    model(**inputs, target=target)  # the batch that verifies
    model.epoch = 0
    calls.clear()
    model(**inputs, target=target)
    assert len(calls) == 1
    model.epoch = 1
    model(**inputs, target=target)
    assert len(calls) == 3


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_plain_network_where_nothing_is_trained(how: str) -> None:
    model = engine()
    network = copy.deepcopy(model.module)
    inputs, target = batch()
    if how == "eval":
        model.eval()
        network.eval()
    with torch.set_grad_enabled(how == "eval"):
        for arguments in (inputs, inputs | {"target": target}):
            torch.manual_seed(0)
            logits = model(**arguments)
            torch.manual_seed(0)
            assert torch.equal(logits, network(**inputs))
        torch.manual_seed(0)
        logits = model(inputs["audio"], inputs["visual"])
        torch.manual_seed(0)
        assert torch.equal(logits, network(**inputs))
    assert model.modulator.state.step.item() == 0


def test_train_and_eval_reach_the_network() -> None:
    model = engine()
    assert not any(m.training for m in model.eval().modules())
    assert all(m.training for m in model.train().modules())


def test_positional_inputs() -> None:
    class Unnamed(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, y)

    inputs, target = batch()
    for kind in (Net, Unnamed):
        results = []
        for positional in (0, 1, 2):
            torch.manual_seed(0)
            model = agm.AGM(kind(), MODALITIES, alpha=3.0, encoders=PATHS)
            names = MODALITIES[positional:]
            args = [inputs[name] for name in MODALITIES[:positional]]
            model(*args, **{name: inputs[name] for name in names}, target=target).sum().backward()
            model.eval()
            results.append([*gradients(model), model(*args, **{name: inputs[name] for name in names})])
        assert_equal(results[0], results[1])
        assert_equal(results[0], results[2])


def test_gradient_accumulation_takes_a_step_a_micro_batch() -> None:
    model = engine()
    network, modulator = copy.deepcopy(model.module), agm.Modulator(MODALITIES, alpha=3.0)
    for seed in range(2):
        inputs, target = batch(seed)
        torch.manual_seed(seed)
        F.cross_entropy(model(**inputs, target=target), target).backward()
        torch.manual_seed(seed)
        F.cross_entropy(modulator(agm.masked_logits(network, inputs, encoders=PATHS), target), target).backward()
    assert model.modulator.state.step.item() == 2
    torch.testing.assert_close(gradients(model), gradients(network))


@pytest.mark.parametrize("encoders", [None, PATHS])
def test_several_forwards_before_a_backward(encoders: dict[str, str] | None) -> None:
    together, apart = engine(encoders=encoders), engine(encoders=encoders)
    losses = []
    for seed in range(2):
        inputs, target = batch(seed)
        torch.manual_seed(seed)
        losses.append(F.cross_entropy(together(**inputs, target=target), target))
        torch.manual_seed(seed)
        F.cross_entropy(apart(**inputs, target=target), target).backward()
    sum(losses).backward()  # type: ignore[union-attr]
    for left, right in zip(gradients(together), gradients(apart), strict=True):
        torch.testing.assert_close(left, right)


def test_state_dict_round_trip_continues_exactly() -> None:
    model = engine()
    step(model, 0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(7)
    resumed = agm.AGM(Net(), MODALITIES, alpha=3.0, encoders=PATHS)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert_equal(step(model, 1), step(resumed, 1))
    keys = set(model.state_dict())
    assert {"modulator.state.running_scores", "modulator.state.step", "modulator.state.skipped"} < keys
    assert {k.removeprefix("module.") for k in keys if k.startswith("module.")} == set(Net().state_dict())


def test_a_copy_trains_on_its_own() -> None:
    model = engine()
    copied = copy.deepcopy(model)
    before = step(copy.deepcopy(model), 0)
    step(copied, 3)
    assert model.modulator.state.step.item() == 0
    assert_equal(step(model, 0), before)


def test_parameters_are_the_networks() -> None:
    model = engine()
    assert [id(p) for p in model.parameters()] == [id(p) for p in model.module.parameters()]


class Factorised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(4, 6), "visual": nn.Linear(5, 6)})
        self.head = nn.Linear(12, 3)

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.fuse({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


def test_a_factorised_network_names_its_modalities() -> None:
    model = agm.AGM(Factorised(), alpha=1.5)
    assert model.modalities == MODALITIES
    inputs, target = batch()
    model(**inputs, target=target).sum().backward()
    assert model.modulator.state.step.item() == 1
    whole = agm.AGM(copy.deepcopy(model.module), alpha=1.5)
    whole._passes._parted = None  # all masked inputs through the whole of it
    model.zero_grad()
    whole(**inputs, target=target).sum().backward()
    model.modulator.state.load_state_dict(agm.ModulationState(2).state_dict())
    model(**inputs, target=target).sum().backward()
    for left, right in zip(gradients(model), gradients(whole), strict=True):
        torch.testing.assert_close(left, right)


def test_an_order_of_its_own_for_a_factorised_network() -> None:
    network = Factorised()
    inputs, target = batch()
    one, other = agm.AGM(network, alpha=2.0), agm.AGM(network, ("visual", "audio"), alpha=2.0)
    for model in (one, other):
        model(**inputs, target=target)
    torch.testing.assert_close(one.modulator.state.scores, other.modulator.state.scores.flip(0))


def test_compiles() -> None:
    torch._dynamo.reset()
    model = agm.AGM(Factorised(), alpha=2.0)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    for seed, size in enumerate((8, 8, 5)):
        inputs, target = batch(seed, size)
        compiled(**inputs, target=target).square().sum().backward()
        eager(**inputs, target=target).square().sum().backward()
        for left, right in zip(gradients(model), gradients(eager), strict=True):
            torch.testing.assert_close(left, right)
        torch.testing.assert_close(model.modulator.state.values, eager.modulator.state.values)


def test_a_step_reads_nothing_from_the_device(no_reads: TorchDispatchMode, monkeypatch: pytest.MonkeyPatch) -> None:
    # The range of the class indices is read on a CPU alone, the encoders' rows in the first step alone.
    monkeypatch.setattr("agm.ops._checks.check_classes", lambda *_: None)
    for encoders in (None, PATHS):
        model = engine(encoders=encoders)
        step(model)
        inputs, target = batch(1)
        with no_reads:
            F.cross_entropy(model(**inputs, target=target), target).backward()


class Targeted(Net):
    def forward(self, audio: Tensor, visual: Tensor, target: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(audio, visual)


class FactorisedNorm(Factorised):
    def __init__(self) -> None:
        super().__init__()
        self.encoders["audio"] = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))


@pytest.mark.parametrize(("kind", "masked"), [(Net, "exact"), (FactorisedNorm, "exact"), (FactorisedNorm, "shared")])
def test_compiles_in_one_graph(kind: type[nn.Module], masked: str) -> None:
    torch._dynamo.reset()
    network = kind()
    network.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    model = agm.AGM(network, MODALITIES, alpha=2.0, masked=masked)  # type: ignore[arg-type]
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        inputs, target = batch(seed)
        compiled(**inputs, target=target).square().sum().backward()
        eager(**inputs, target=target).square().sum().backward()
        for left, right in zip(gradients(model), gradients(eager), strict=True):
            torch.testing.assert_close(left, right)
    torch.testing.assert_close(model.state_dict(), eager.state_dict())


def test_inputs_elsewhere_than_the_state() -> None:
    model = engine()
    inputs, target = batch()
    elsewhere = {name: x.to("meta") for name, x in inputs.items()}
    with pytest.raises(ValueError, match=r"inputs to be on cpu, where the state of AGM is, but they are on meta"):
        model(**elsewhere, target=target.to("meta"))


def test_loading_another_absent_parameter_in_its_place() -> None:
    model = agm.AGM(Net(), MODALITIES, absent={"audio": nn.Parameter(torch.randn(4))})
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    model.modulator.state.running_scores.copy_(torch.tensor([1.0, 2.0]))
    inputs, target = batch()
    model(**inputs, target=target).square().sum().backward()
    assert model.absent.audio.grad is not None


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"modalities": ("audio", "smell")}, ValueError, r"does not take \['smell'\]"),
            ({"modalities": None}, ValueError, "`modalities`"),
            ({"modalities": ("audio",)}, ValueError, "`modalities`"),
            ({"encoders": {"audio": "nothing"}}, ValueError, "no 'nothing'"),
            ({"encoders": {"audio": nn.Linear(4, 6)}}, TypeError, r"path in the network.*Linear"),
            ({"modalities": "audio"}, ValueError, "`modalities`"),
            ({"network": Factorised(), "modalities": ("audio", "smell")}, ValueError, r"`encoders` name"),
            ({"network": Targeted()}, ValueError, "no parameter `target`"),
            ({"absent": {"audio": (nn.Parameter(torch.zeros(4)), None)}}, ValueError, "inside a pytree"),
            ({"alpha": -0.1}, ValueError, "`alpha`"),
            ({"start": None}, ValueError, "`start`"),
            ({"start": 1.5}, ValueError, "`start`"),
            ({"ignore_index": "none"}, TypeError, "`ignore_index`"),
            ({"backend": "fast"}, ValueError, "`backend`"),
            ({"alpha": float("nan")}, ValueError, "`alpha`"),
            ({"masked": "both"}, ValueError, "`masked`"),
            ({"start": 3, "stop": 1}, ValueError, "`start`"),
            ({"network": lambda audio, visual: audio}, TypeError, "nn.Module"),
        ],
    )
    def test_settings(self, options: dict[str, object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            agm.AGM(**({"network": Net(), "modalities": MODALITIES} | options))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"target": None}, ValueError, "`target`"),
            ({"audio": None}, ValueError, r"none for \['audio'\]"),
            ({"audio": torch.randn(7, 4)}, ValueError, "same number of samples"),
            ({"target": torch.zeros(7, dtype=torch.int64)}, ValueError, r"shape \(8,\)"),
            ({"target": torch.zeros(8)}, TypeError, "class indices"),
            ({"target": torch.full((8,), 3)}, ValueError, r"\[0, 3\)"),
        ],
    )
    def test_a_bad_batch_leaves_no_trace(
        self, changed: dict[str, object], error: type[Exception], message: str
    ) -> None:
        model = engine()
        step(model)
        before = copy.deepcopy(model.state_dict())
        inputs, target = batch()
        with pytest.raises(error, match=message):
            model(**({**inputs, "target": target} | changed))
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_a_forward_that_raises_leaves_state_and_modes(self) -> None:
        model = engine()
        step(model)
        before = copy.deepcopy(model.modulator.state.state_dict())
        model.module.visual_net[1].eval()
        modes = [m.training for m in model.modules()]
        inputs, target = batch()
        with pytest.raises(RuntimeError):
            model(audio=inputs["audio"], visual=inputs["visual"][:, :3], target=target)
        torch.testing.assert_close(model.modulator.state.state_dict(), before, rtol=0, atol=0)
        assert [m.training for m in model.modules()] == modes

    def test_a_factorised_network_takes_modalities_only(self) -> None:
        inputs, target = batch()
        with pytest.raises(TypeError, match="beside the modalities"):
            agm.AGM(Factorised())(**inputs, scale=2.0, target=target)


def test_a_compiled_step_does_not_depend_on_other_networks() -> None:
    """Its graph was once guarded by the set of all networks that had been verified, of which some were gone."""
    torch._dynamo.reset()
    for seed in range(3):
        inputs, target = batch(seed, 8)
        others = [agm.AGM(Factorised(), alpha=2.0) for _ in range(4)]
        for other in others:
            other(**inputs, target=target)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model = agm.AGM(Factorised(), alpha=2.0)
    compiled = torch.compile(model, backend=count)
    for _ in range(2):  # from the second step on the number of classes is known
        compiled(**inputs, target=target)
    before = len(graphs)
    del others, other
    gc.collect()
    compiled(**inputs, target=target)
    assert len(graphs) == before
