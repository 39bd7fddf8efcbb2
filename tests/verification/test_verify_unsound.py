"""agm.verify of networks that AGM does not compute as the definition has it: what it says is wrong, and why."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm._one_pass.split_pass import split_pass

from .small_networks import BATCH, BOTH, TARGET, Fusing, Pairs, Reordered, Reordering, engine, inputs


class MixingSamples(nn.Linear):
    """Centres the batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - 0.5 * y.mean(0)


class AlwaysRandom(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Stateful(nn.Linear):
    """Smooths its features over calls, whatever its mode."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("smooth", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.smooth.lerp_(y.detach().mean(0), 0.5)
        return y * self.smooth  # which the backward reads


class Counting(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


def unsound(network: nn.Module, *advice: str, **options: Any) -> agm.Verification:
    model = engine(network, **options)
    result = agm.verify(model, inputs(), TARGET)
    assert not result.ok
    text = str(result)
    assert "too large" in text
    for part in advice:
        assert part in text
    return result


def above(figures: Mapping[str, float]) -> set[str]:
    return {name for name, value in figures.items() if value > 1e-3}


class TestUnsoundNetworks:
    def test_one_pass_that_is_not_what_two_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is known to be; so it is made wrong."""

        def wrong(*given: Any, **options: Any) -> tuple[Tensor, Tensor]:
            train, evaluated = split_pass(*given, **options)
            return train, evaluated + 1.0

        monkeypatch.setattr("agm._one_pass.joint_call.split_pass", wrong)
        unsound(Fusing(), "set passes='two'", passes="one")

    def test_an_encoder_that_mixes_samples(self) -> None:
        """In the joint pass it has the rows that a pass of its own would have, and absent rows are all the same."""
        network = Pairs(audio=MixingSamples(6, 5))
        assert agm.verify(engine(network, encoders=BOTH), inputs(), TARGET).ok
        assert agm.verify(engine(network, max_rows=BATCH), inputs(), TARGET).ok

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_an_encoder_that_returns_rows_in_another_order(self, masked: Any) -> None:
        """Each subset is a batch of its own."""
        model = engine(Reordered(audio=Reordering(6, 5)), encoders=BOTH, masked=masked)
        assert agm.verify(model, inputs(), TARGET).ok

    def test_of_a_network_of_its_own_encoders(self) -> None:
        class Unordered(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 5)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                order = torch.arange(len(x) - 1, -1, -1)
                return self.linear(x)[order], order

        class Ordering(Fusing):
            def fuse(self, features: Mapping[str, Any]) -> Tensor:
                hidden, order = features["audio"]
                return super().fuse({**features, "audio": hidden[order.argsort()]})

        for masked in ("exact", "shared"):
            assert agm.verify(engine(Ordering(audio=Unordered()), masked=masked), inputs(), TARGET).ok

    def test_a_fusion_that_mixes_samples(self) -> None:
        class Mixing(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                z = super().forward(audio, visual)
                return z - 0.5 * z.mean(0)

        assert agm.verify(engine(Mixing(), encoders=BOTH, masked="shared"), inputs(), TARGET).ok
        result = unsound(Mixing(), "depend on the other samples", max_rows=BATCH - 1)
        assert {"audio", "visual"} <= above(result.logits)

    def test_a_fuse_that_is_not_what_forward_does(self) -> None:
        class Beside(Fusing):
            def __init__(self) -> None:
                super().__init__()
                self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                hidden = torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)
                return self.head(hidden) + self.gate * hidden[:, :3]

        network = Beside()
        result = agm.verify(engine(network), inputs(), TARGET)
        assert result.ok, str(result)  # while the gate is closed forward itself runs, whose gradients are right
        with torch.no_grad():
            network.gate.fill_(1.0)
        with pytest.raises(ValueError, match="before, between or behind"):
            agm.verify(engine(network), inputs(), TARGET)

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}, {"encoders": BOTH, "masked": "shared"}])
    def test_random_numbers_in_eval_mode(self, options: dict[str, Any]) -> None:
        result = unsound(Pairs(audio=AlwaysRandom(6, 5), visual=nn.Linear(6, 5)), "random numbers in eval", **options)
        assert above(result.logits)

    def test_a_state_that_all_samples_of_a_batch_share(self) -> None:
        network = Pairs(audio=Stateful(6, 5), visual=nn.Linear(6, 5))
        by_path = agm.verify(engine(copy.deepcopy(network), encoders=BOTH), inputs(), TARGET)
        assert not above(by_path.logits)  # present rows and absent ones do not meet
        before = copy.deepcopy(network.state_dict())
        result = unsound(network, "keeps a state", max_rows=BATCH - 1)
        assert "audio" in above(result.logits)
        assert not above(result.buffers)  # what masked passes wrote is put back
        torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}])
    def test_every_masked_pass_finds_the_counters_of_the_joint_pass(self, options: dict[str, Any]) -> None:
        network = Pairs(audio=Counting(6, 5), visual=nn.Linear(6, 5))
        model = engine(network, **options)
        for _ in range(2):
            result = agm.verify(model, inputs(), TARGET)
            assert result.ok, str(result)
        assert network.audio_net.calls == 0
        model(**inputs(), target=TARGET)
        assert network.audio_net.calls == 1

    def test_what_may_be_rounding(self) -> None:
        model = engine(Pairs().float(), encoders=BOTH)
        given = inputs(torch.float32)
        result = agm.verify(model, given, TARGET)
        assert result.ok
        result = agm.verify(model, given, TARGET, tolerance=result.worst / 2)
        assert not result.ok
        assert "may be rounding" in str(result)

    def test_says_where_and_how_much(self) -> None:
        network = Pairs(audio=AlwaysRandom(6, 5), visual=nn.Linear(6, 5))
        lines = str(unsound(network, encoders=BOTH)).splitlines()
        assert lines[0] == (
            "The training step (masked='exact') is not one pass of the whole network for each of the 3 subsets, at "
            "tolerance 1e-08."
        )
        assert lines[1].startswith("  logits ")
        assert "too large: " in lines[1]
        sound = str(agm.verify(engine(Pairs(), encoders=BOTH), inputs(), TARGET))
        assert "equals one pass of the whole network" in sound
        assert "largest: " in sound
        assert len(sound.splitlines()) == 6
