"""What forward and hooks do around an encoder holds in the masked passes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import agm

from .networks import BOTH, Factorised, Pairs, inputs


class TestGradientHooks:
    """A hook of the fusion on features sees their gradient in its own pass, and once."""

    class Fused(Factorised):
        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            return super().fuse({name: hooked(x) for name, x in features.items()})

    class ByPath(Pairs):
        def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
            return [hooked(x) for x in super().features(audio, visual)]

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("passes", ["auto", "two"])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize(("kind", "options"), [(Fused, {}), (ByPath, {"encoders": BOTH})])
    def test_step(self, kind: Any, options: dict[str, Any], masked: Any, passes: Any, dropout: float) -> None:
        network = kind()
        for name, encoder in list(network.named_modules()):
            if name.endswith(("audio_net", "visual_net", ".audio", ".visual")):
                network.set_submodule(name, nn.Sequential(encoder, nn.Dropout(dropout)))
        model = agm.AGM(network, ("audio", "visual"), masked=masked, passes=passes, **options)
        found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
        assert found.ok, found


def hooked(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * gradient.abs())  # not linear: of a sum it is another one
    return x


class TestAroundAnEncoder:
    """What forward does there holds in the masked passes."""

    class Around(Factorised):
        around: Any = None

        def forward(self, **given: Tensor) -> Tensor:
            features = {"visual": self.encoders["visual"](given["visual"])}
            return self.fuse({"audio": type(self).around(self.encoders["audio"], given["audio"]), **features})

    class Frozen(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            with torch.no_grad():
                return encoder(x)

        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            features["audio"].mul_(self.head.weight[0, :5])  # written to with gradients
            return super().fuse(features)

    class Reentrant(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            return checkpoint(encoder, x.requires_grad_(), use_reentrant=True)

    class Coarse(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return encoder(x).float()

    class Own(Around):
        """Whose forward does without `fuse`."""

        def forward(self, **given: Tensor) -> Tensor:
            visual = self.encoders["visual"](given["visual"])
            return self.head(torch.cat([self.around(self.encoders["audio"], given["audio"]), visual], 1))

        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            return self.head(torch.cat([features["audio"], features["visual"]], 1))

    class OwnFrozen(Own, Frozen):
        pass

    class OwnReentrant(Own, Reentrant):
        pass

    class Detaching(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            return encoder(x).detach()

    class Dropping(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            return nn.functional.dropout(encoder(x), 0.5, encoder.training)

    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize("passes", ["auto", "two"])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("kind", [Frozen, OwnFrozen, Detaching, Coarse, Dropping])
    def test_is_done_there_too(self, kind: type[Factorised], masked: Any, passes: Any, compiled: bool) -> None:
        network = kind().float() if kind is self.Coarse else kind()
        if compiled:
            network.encoders["audio"].compile(backend="eager")
            if kind is self.Dropping and masked == "shared":
                pytest.skip("of a compiled encoder the features are those that fuse is given")
        given = {name: x.float() if kind is self.Coarse else x for name, x in inputs().items()}
        paths = {name: f"encoders.{name}" for name in BOTH}
        for encoders in (None,) if compiled else (None, paths):
            own: dict[str, Any] = {"masked": masked, "passes": passes, "encoders": encoders}
            model = agm.AGM(copy.deepcopy(network), ("audio", "visual"), **own)
            for _ in range(3):
                found = agm.verify(model, given, torch.tensor([0, 1, 2, 0]), tolerance=1e-1)
                assert found.ok, str(found)
                assert max(found.logits.values()) < 1e-6  # gradients are coarse sums

    @pytest.mark.parametrize("other", [Reentrant, OwnReentrant])
    @pytest.mark.parametrize("passes", ["auto", "two"])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_a_reentrant_checkpoint_does_not_freeze_an_encoder(self, masked: Any, passes: Any, other: Any) -> None:
        found = []
        for kind in (Factorised, other):
            torch.manual_seed(0)
            model = agm.AGM(kind(), alpha=2.0, masked=masked, passes=passes)
            if masked == "shared" and kind is other:
                with pytest.raises(ValueError, match="use_reentrant=False"):
                    model(**inputs(), target=torch.tensor([0, 1, 2, 0]))
                return
            for _ in range(2):
                model(**inputs(), target=torch.tensor([0, 1, 2, 0])).square().sum().backward()
            found.append([parameter.grad for parameter in model.parameters()])
        torch.testing.assert_close(*found)


def test_statistics_of_absent_rows_that_are_one_a_sample() -> None:
    network = Pairs(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)))
    absent = {"audio": lambda x: x * 0.1 + 1.0}
    model = agm.AGM(network, ("audio", "visual"), encoders=BOTH, masked="shared", absent=absent)
    found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
    assert found.ok, found


class TestHooksOfAnEncoder:
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_that_detach_what_it_returns(self, masked: Any) -> None:
        network = Factorised()
        network.encoders["audio"].register_forward_hook(lambda module, args, output: output.detach())
        model = agm.AGM(network, masked=masked)
        for _ in range(2):
            found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
            assert found.ok, found
            model(**inputs(), target=torch.tensor([0, 1, 2, 0])).sum().backward()

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_that_make_its_weights_in_a_compiled_step(self, masked: Any) -> None:
        histories = []
        for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
            torch.manual_seed(0)
            network = Factorised()
            network.encoders["audio"] = nn.utils.weight_norm(network.encoders["audio"])
            model = agm.AGM(network, alpha=2.0, masked=masked)
            step, optimizer = wrap(model), torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                step(**inputs(), target=torch.tensor([0, 1, 2, 0])).square().sum().backward()
                optimizer.step()
            histories.append(list(model.parameters()))
        torch.testing.assert_close(*histories)
