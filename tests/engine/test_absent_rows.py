"""Absent rows: without a gradient, kept for some steps, and with one that explodes."""

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm

from .plain_network import BATCH, CLASSES, ENCODERS, NAMES, TARGET, Factorised, Net, count_rows, inputs


def normed(depth: int, eps: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(depth):
        linear = nn.Linear(4 if not place else 5, 5)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LayerNorm(5, eps), nn.GELU()]
    return nn.Sequential(*layers)


class TestAbsentRows:
    @pytest.mark.parametrize("kind", [Net, Factorised])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_without_their_gradient(self, masked: Any, kind: type[Net]) -> None:
        network = kind()
        network.visual_net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.1)).double()
        encoders = ENCODERS if kind is Net else None
        model = agm.AGM(network, NAMES, encoders=encoders, masked=masked, absent_gradient=False, alpha=2.0)
        for _ in range(2):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)
        other = agm.AGM(network, NAMES, encoders=encoders, masked=masked, alpha=2.0)
        gradients = []
        for one in (model, other):
            one.zero_grad()
            torch.manual_seed(1)
            one(**inputs(), target=TARGET).square().sum().backward()
            gradients.append(network.audio_net[0].bias.grad.clone())
        assert float((gradients[0] - gradients[1]).abs().max()) > 1e-6

    @pytest.mark.parametrize("kind", [Net, Factorised])
    def test_kept_for_some_steps(self, kind: type[Net]) -> None:
        """Their features are those of the last refresh; the encoder is given the batch alone in between."""
        rows: list[int] = []
        network = kind()
        encoders = ENCODERS if kind is Net else None
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 3}
        model = agm.AGM(network, NAMES, encoders=encoders, **options)
        count_rows(network.audio_net[0], rows)
        model._passes.record.looks_again = 10**9
        for _ in range(6):  # each kind of step looks once whether rows meet
            model(**inputs(), target=TARGET)
        steps, masked = [], []
        model.modulator.register_forward_pre_hook(
            lambda module, args: masked.append(args[0][0] if isinstance(args[0], Tensor) else args[0].stacked()[0])
        )
        for _ in range(6):
            rows.clear()
            model(**inputs(), target=TARGET)
            steps.append(sum(rows))
            with torch.no_grad():
                network.visual_net[0].bias += 1.0  # its absent features move, but not those that are kept
        assert steps == [BATCH + 1, BATCH, BATCH] * 2
        torch.testing.assert_close(masked[0], masked[1])
        torch.testing.assert_close(masked[0], masked[2])
        assert float((masked[3] - masked[2]).abs().max()) > 1e-3
        del network.audio_net[0].forward
        assert agm.verify(model, inputs(), TARGET).ok

    @pytest.mark.parametrize("kind", [Net, Factorised])
    def test_kept_ones_open_no_way_into_a_detached_encoder(self, kind: type[Net]) -> None:
        class Detached(kind):  # type: ignore[valid-type, misc]
            def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
                return self.head(torch.cat([features["audio"], features["visual"]], -1))

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual).detach()})

        encoders = ENCODERS if kind is Net else None
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 4}
        model = agm.AGM(Detached(), NAMES, encoders=encoders, **options)
        for _ in range(3):
            model(**inputs(), target=TARGET).square().sum().backward()
            assert all(parameter.grad is None for parameter in model.module.visual_net.parameters())

    def test_a_plan_says_whose_features_no_step_keeps(self) -> None:
        class Scaled(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return super().forward(audio * 2, visual)

        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 4}
        for network, said in ((Net(), False), (Scaled(), True)):
            model = agm.AGM(network, NAMES, encoders=ENCODERS, **options)
            model(**inputs(), target=TARGET)
            assert ("Features of an absent `audio` are computed in every step" in str(model.plan())) == said

    def test_a_failed_step_does_not_count(self) -> None:
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 2}
        model = agm.AGM(Factorised(), NAMES, **options)
        for step in range(3):
            before = model.kept.get_extra_state()
            with pytest.raises(ValueError, match="class"):
                model(**inputs(step), target=TARGET + CLASSES)
            handle = model.module.head.register_forward_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(**inputs(step), target=TARGET)
            handle.remove()
            after = model.kept.get_extra_state()
            assert after["steps"] == before["steps"] == step
            assert after["kept"].keys() == before["kept"].keys()
            assert all(after["kept"][name] is before["kept"][name] for name in before["kept"])
            model(**inputs(step), target=TARGET)

    def test_a_resumed_run_keeps_them(self) -> None:
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 4}
        histories = []
        for resumes in (False, True):
            model = agm.AGM(Factorised(), NAMES, **options)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
            losses = []
            for step in range(6):
                if resumes and step == 2:
                    state = model.state_dict()
                    model = agm.AGM(Factorised(), NAMES, **options)
                    model.load_state_dict(state)
                    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(**inputs(step), target=TARGET), TARGET)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            histories.append(losses)
        assert histories[0] == histories[1]

    @pytest.mark.parametrize("masked", ["shared", "one piece"])
    @pytest.mark.parametrize("kind", [Net, Factorised])
    def test_a_warning_where_their_gradient_explodes(self, kind: type[Net], masked: str) -> None:
        if masked == "one piece" and kind is Factorised:
            pytest.skip("it offers its encoders")
        for eps, warns in ((1e-5, False), (1e-12, True)):
            network = kind()
            network.audio_net, network.visual_net = normed(2, eps).double(), normed(2, eps).double()
            encoders = ENCODERS if kind is Net and masked == "shared" else None
            model = agm.AGM(network, NAMES, encoders=encoders, masked="exact" if masked == "one piece" else "shared")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(**inputs(), target=TARGET)
                model(**inputs(), target=TARGET)
            found = [str(warning.message) for warning in caught if "absent_gradient=False" in str(warning.message)]
            assert bool(found) == warns
            assert len(found) <= 2
        calm = agm.AGM(network, NAMES, encoders=ENCODERS, masked="shared", absent_gradient=False)
        F.cross_entropy(calm(**inputs(), target=TARGET), TARGET).backward()
        assert float(nn.utils.get_total_norm([p.grad for p in calm.parameters() if p.grad is not None])) < 100

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="network of one piece"):
            agm.AGM(Net(), NAMES, absent_gradient=False)
        with pytest.raises(ValueError, match="`absent_refresh` to be 1"):
            agm.AGM(Net(), NAMES, encoders=ENCODERS, absent_refresh=2)
        with pytest.raises(ValueError, match="absent inputs are learnt"):
            agm.AGM(
                Net(),
                NAMES,
                encoders=ENCODERS,
                absent_gradient=False,
                absent={"audio": nn.Parameter(torch.zeros(4).double())},
            )
