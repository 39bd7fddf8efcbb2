"""agm.verify of networks that are right, and what it leaves behind and refuses."""

import random
import threading
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import agm
from agm.models import build, fusions

from .small_networks import BATCH, BOTH, TARGET, Fusing, Pairs, Reordered, Reordering, engine, inputs, rows


class TestSoundNetworks:
    @pytest.mark.parametrize("fusion", fusions)
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("paths", [False, True])
    def test_of_the_library(self, fusion: str, masked: Any, paths: bool) -> None:
        torch.manual_seed(0)
        shapes = {"audio": (1, 8, 8), "text": (5, 6)} | ({} if fusion == "film" else {"table": (4,)})
        network = build(fusion, shapes, num_classes=3, width=8)
        encoders = {name: f"encoders.{name}" for name in shapes} if paths else None
        model = agm.AGM(network, tuple(shapes), alpha=2.0, masked=masked, encoders=encoders)
        given = {
            name: rows(BATCH, *shape, seed=i, dtype=torch.float32) for i, (name, shape) in enumerate(shapes.items())
        }
        result = agm.verify(model, given, TARGET)
        assert result.ok, str(result)
        assert result.tolerance == 1e-3
        assert set(result.gradients) >= {name for name, _ in network.named_parameters()} | {"input `audio`"}
        assert any("running_mean" in name for name in result.buffers)
        result = agm.verify(model, given, TARGET, double=True)
        assert result.ok, str(result)
        assert result.tolerance == 1e-8

    @pytest.mark.parametrize("passes", ["one", "two", "auto"])
    @pytest.mark.parametrize("fusion", ["late", "early"])
    def test_whatever_the_passes(self, fusion: str, passes: Any) -> None:
        torch.manual_seed(0)
        shapes = {"audio": (1, 8, 8), "table": (4,)}
        network = build(fusion, shapes, num_classes=3, width=8)
        assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        model = agm.AGM(network, alpha=2.0, passes=passes, max_rows=BATCH - 1, checkpoint=True)
        given = {name: rows(BATCH, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
        for _ in range(2):
            result = agm.verify(model, given, TARGET, double=True)
            assert result.ok, str(result)

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize(
        ("kind", "encoders"), [(Pairs, {"visual": "visual_net"}), (Pairs, BOTH), (Fusing, None), (Fusing, BOTH)]
    )
    def test_with_encoders(self, kind: type[Pairs], masked: Any, encoders: Any) -> None:
        model = engine(kind(), masked=masked, encoders=encoders)
        for _ in range(2):
            result = agm.verify(model, inputs(), TARGET)
            assert result.ok, str(result)
        assert list(result.logits) == ["audio", "visual", "audio + visual (joint)"]
        assert {"audio_net.0.weight", "head.3.bias", "input `visual`"} < set(result.gradients)
        assert "head.1.running_var" in result.buffers
        assert list(result.coefficients) == ["audio", "visual"]

    @pytest.mark.parametrize("kind", [Pairs, Fusing])
    @pytest.mark.parametrize("options", [{}, {"max_rows": 4}, {"max_rows": 4, "checkpoint": True}])
    def test_of_one_piece_and_in_chunks(self, kind: type[Pairs], options: dict[str, Any]) -> None:
        result = agm.verify(engine(kind(), **options), inputs(), TARGET)
        assert result.ok, str(result)

    def test_of_one_piece_in_shared_mode(self) -> None:
        network = Pairs(audio=nn.Linear(6, 5), visual=nn.Linear(6, 5))
        network.head = nn.Linear(10, 3).double()
        result = agm.verify(engine(network, masked="shared"), inputs(), TARGET)
        assert result.ok, str(result)

    def test_recurrent_layers_and_learned_absent_inputs(self) -> None:
        class Last(nn.GRU):
            def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
                return super().forward(x)[0][:, -1]

        token = nn.Parameter(rows(6, seed=4))
        network = Pairs(visual=Last(6, 5, num_layers=2, batch_first=True))
        given = {"audio": rows(BATCH, 6), "visual": rows(BATCH, 4, 6)}
        for masked in ("exact", "shared"):
            model = engine(network, masked=masked, encoders=BOTH, absent={"audio": token})
            result = agm.verify(model, given, TARGET)
            assert result.ok, str(result)
            assert "absent.audio" in result.gradients

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_pytrees_and_other_arguments(self, masked: Any) -> None:
        class Padded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 5)

            def forward(self, x: Mapping[str, Tensor]) -> Tensor:
                return self.linear(x["values"]).masked_fill(x["padding"].unsqueeze(-1), 0.0).sum(1)

        class Gated(Pairs):
            def forward(self, audio: Tensor, visual: Any, gate: Tensor, scale: float) -> Tensor:  # type: ignore[override]
                hidden = torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)
                return self.head(hidden * gate.unsqueeze(1) * scale)

        padding = torch.arange(4) >= torch.tensor([4, 1, 3, 2, 4, 2]).unsqueeze(1)
        given = {"audio": rows(BATCH, 6), "visual": {"values": rows(BATCH, 4, 6), "padding": padding}}
        model = engine(Gated(visual=Padded()), encoders=BOTH, masked=masked)
        result = agm.verify(model, given, TARGET, arguments={"gate": rows(BATCH, seed=5), "scale": 2.0})
        assert result.ok, str(result)
        assert "input `visual`['values']" in result.gradients

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpoints_of_the_network(self, reentrant: bool) -> None:
        class Checkpointed(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                hidden = checkpoint(self.audio_net, audio, use_reentrant=reentrant)
                return self.head(torch.cat([hidden, self.visual_net(visual)], 1))

        result = agm.verify(engine(Checkpointed(), encoders=BOTH), inputs(), TARGET)
        assert result.ok, str(result)

    def test_networks_that_write_to_their_inputs(self) -> None:
        class Writing(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return super().forward(audio.mul_(2.0), visual)

        given = inputs()
        for options in ({}, {"encoders": BOTH}, {"max_rows": 3}):
            assert agm.verify(engine(Writing(), **options), given, TARGET).ok
        torch.testing.assert_close(given, inputs(), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_in_low_precision(self, dtype: torch.dtype) -> None:
        result = agm.verify(engine(Pairs().to(dtype), encoders=BOTH), inputs(dtype), TARGET)
        assert result.ok, str(result)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = agm.verify(engine(Pairs().float(), encoders=BOTH), inputs(torch.float32), TARGET)
        assert result.ok, str(result)
        assert result.tolerance == 1e-1

    def test_outside_of_the_window_and_without_modulation(self) -> None:
        model = engine(Pairs(), encoders=BOTH, start=3, stop=3, alpha=0.0)
        result = agm.verify(model, inputs(), TARGET)
        assert result.ok, str(result)
        assert (model.modulator.start, model.modulator.stop, model.modulator.alpha) == (3, 3, 0.0)

    def test_ignored_targets_and_frozen_parts(self) -> None:
        network = Pairs()
        network.audio_net.requires_grad_(False).eval()
        target = torch.where(torch.arange(BATCH) < 2, -100, TARGET)
        result = agm.verify(engine(network, encoders=BOTH), inputs(), target)
        assert result.ok, str(result)
        assert not any(name.startswith("audio_net") for name in result.gradients)
        assert not network.audio_net.training


class TestNoTrace:
    @pytest.mark.parametrize("fails", [False, True])
    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}, {"encoders": BOTH, "masked": "shared"}])
    @pytest.mark.parametrize("sound", [False, True])
    def test_on_anything(self, fails: bool, options: dict[str, Any], sound: bool) -> None:
        class History(nn.Linear):
            def __init__(self) -> None:
                super().__init__(6, 5)
                self.seen: list[int] = []
                self.last: Tensor | None = None

            def forward(self, x: Tensor) -> Tensor:
                self.seen.append(len(x))
                self.last = super().forward(x)
                return self.last + np.random.rand() + random.random() + torch.rand(()) * (not sound)

        network = Pairs(visual=History())
        model = engine(network, **options)
        model(**inputs(), target=TARGET).sum().backward()
        model.modulator.epoch = 2
        network.head[1].eval()
        if fails:
            calls = iter(range(100))
            network.head[0].register_forward_hook(lambda *_: 1 / 0 if next(calls) == 2 else None)
        pending = model(**inputs(), target=TARGET).square().sum()

        tensors = dict(chain(model.named_parameters(), model.named_buffers()))
        before = {
            "tensors": {name: id(x) for name, x in tensors.items()},
            "modes": [module.training for module in model.modules()],
            "attributes": [dict(vars(module)) for module in (network, network.visual_net, model.modulator)],
            "versions": [p._version for p in model.parameters()],
        }
        values = {name: x.detach().clone() for name, x in tensors.items()}
        gradients = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        seen = list(network.visual_net.seen)
        generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        if fails:
            with pytest.raises(ZeroDivisionError):
                agm.verify(model, inputs(), TARGET)
        else:
            agm.verify(model, inputs(), TARGET)

        tensors = dict(chain(model.named_parameters(), model.named_buffers()))
        assert {name: id(x) for name, x in tensors.items()} == before["tensors"]
        torch.testing.assert_close({name: x.detach() for name, x in tensors.items()}, values, rtol=0, atol=0)
        assert [module.training for module in model.modules()] == before["modes"]
        for module, attributes in zip(
            (network, network.visual_net, model.modulator), before["attributes"], strict=True
        ):
            assert vars(module).keys() == attributes.keys()
            assert all(vars(module)[name] is value for name, value in attributes.items())
        assert [p._version for p in model.parameters()] == before["versions"]
        now = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(a is b and torch.equal(a, value) for a, (b, value) in zip(now, gradients, strict=True))
        assert network.visual_net.seen == seen
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert random.getstate() == generators[1]
        assert (np.random.get_state()[1] == generators[2]).all()
        pending.backward()  # a graph from before is still good

    def test_on_the_next_step(self) -> None:
        steps = []
        for verified in (False, True):
            model = engine(Pairs(), encoders=BOTH)
            torch.manual_seed(3)
            if verified:
                agm.verify(model, inputs(), TARGET)
                agm.verify(model, inputs(), TARGET, double=True)
            F.cross_entropy(model(**inputs(), target=TARGET), TARGET).backward()
            steps.append({**model.state_dict(), **{n: p.grad for n, p in model.named_parameters()}})
        torch.testing.assert_close(*steps, rtol=0, atol=0)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_around_it(self, mode: Any) -> None:
        model = engine(Pairs(), encoders=BOTH)
        with mode():
            result = agm.verify(model, inputs(), TARGET)
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert result.ok, str(result)

    def test_on_a_generator_of_the_network(self) -> None:
        class Noisy(nn.Linear):
            def __init__(self) -> None:
                super().__init__(6, 5)
                self.generator = torch.Generator().manual_seed(7)

            def forward(self, x: Tensor) -> Tensor:
                noise = torch.randn(5, generator=self.generator, dtype=x.dtype) if self.training else 0.0
                return super().forward(x) + noise

        network = Pairs(audio=Noisy())
        before = network.audio_net.generator.get_state()
        assert agm.verify(engine(network, encoders=BOTH), inputs(), TARGET).ok
        assert torch.equal(network.audio_net.generator.get_state(), before)


class TestRefusals:
    def test_settings(self) -> None:
        model = engine(Pairs())
        with pytest.raises(TypeError, match=r"agm\.AGM, but got Pairs"):
            agm.verify(Pairs(), inputs(), TARGET)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="`tolerance` to be positive, but got 0"):
            agm.verify(model, inputs(), TARGET, tolerance=0)
        with pytest.raises(ValueError, match=r"training mode.*model\.train\(\)"):
            agm.verify(model.eval(), inputs(), TARGET)

    def test_a_model_that_cannot_be_copied(self) -> None:
        network = Pairs()
        network.last = network.head(rows(BATCH, 10))  # hangs in a graph, of which the values do
        assert agm.verify(engine(network), inputs(), TARGET, double=True).ok
        network.lock = threading.Lock()
        with pytest.raises(TypeError, match=r"`model` to be one that copy\.deepcopy can copy"):
            agm.verify(engine(network), inputs(), TARGET, double=True)

    def test_inputs(self) -> None:
        with pytest.raises(ValueError, match=r"none for \['visual'\]"):
            agm.verify(engine(Pairs()), {"audio": rows(BATCH, 6)}, TARGET)

    def test_a_tolerance_of_ones_own(self) -> None:
        network = Reordered(audio=Reordering(6, 5))
        assert agm.verify(engine(network, encoders=BOTH), inputs(), TARGET, tolerance=1e3).ok


def test_inputs_are_a_mapping():
    model = agm.AGM(nn.Bilinear(2, 2, 3), ("input1", "input2"))
    inputs = (torch.randn(4, 2), torch.randn(4, 2))
    with pytest.raises(TypeError, match=r"`inputs` to be a mapping .*, but got tuple. Give for example {'audio': a"):
        agm.verify(model, inputs, torch.randint(3, (4,)))
