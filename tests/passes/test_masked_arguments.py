"""Other arguments of forward, how modalities enter it, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

from .separate import BOTH, PATHS, Pairs, Three, compare, rows, three_inputs


class TestOtherArguments:
    class Gated(Pairs):
        def forward(self, audio: Tensor, visual: Tensor, gate: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
            hidden = torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)
            return self.head(hidden * gate.unsqueeze(1) * scale)

    def network(self) -> nn.Module:
        return self.Gated(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()

    inputs: ClassVar = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}])
    def test_rows_are_repeated_and_the_rest_passed_on(self, options: dict[str, Any]) -> None:
        network, gate = self.network(), rows(4, seed=4)
        masked = agm.masked_logits(network, self.inputs, arguments={"gate": gate, "scale": 2.0}, **options)
        zeros = torch.zeros_like(gate.unsqueeze(1).expand(4, 6))
        torch.testing.assert_close(masked[0], network(self.inputs["audio"], zeros, gate, scale=2.0))
        torch.testing.assert_close(masked[1], network(zeros, self.inputs["visual"], gate, scale=2.0))

    def test_a_tensor_that_has_not_one_row_a_sample_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`gate`.*one row for each of the 4 samples.*\(3,\)"):
            agm.masked_logits(self.network(), self.inputs, arguments={"gate": rows(3)})

    def test_an_encoder_may_take_them(self) -> None:
        """Then an absent row is another one for every sample."""

        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 5)

            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                return self.linear(x) * gate.unsqueeze(1)

        class Net(Pairs):
            def forward(self, audio: Tensor, visual: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
                return self.head(torch.cat([self.audio_net(audio, gate), self.visual_net(visual)], 1))

        network, gate = Net(Scaled(), nn.Linear(6, 5), 10).double(), rows(4, seed=4)
        whole = agm.masked_logits(network, self.inputs, arguments={"gate": gate})
        factorised = agm.masked_logits(network, self.inputs, arguments={"gate": gate}, encoders=BOTH)
        torch.testing.assert_close(factorised, whole)


class TestBinding:
    def test_by_position_when_forward_has_other_names(self) -> None:
        class Positional(Pairs):
            def forward(self, x: Tensor, y: Tensor, /) -> Tensor:
                return super().forward(x, y)

        network = Positional(nn.Linear(6, 5), nn.Linear(4, 5), 10).double()
        inputs = {"audio": rows(4, 6), "visual": rows(4, 4, seed=1)}
        expected = agm.masked_logits(
            _with_forward(network, lambda self, audio, visual: Pairs.forward(self, audio, visual)), inputs
        )
        torch.testing.assert_close(agm.masked_logits(network, inputs), expected)

    def test_keyword_only_and_catch_all_signatures(self) -> None:
        inputs = {"audio": rows(4, 6), "visual": rows(4, 4, seed=1)}
        network = Pairs(nn.Linear(6, 5), nn.Linear(4, 5), 10).double()
        expected = agm.masked_logits(network, inputs)
        for forward in (
            lambda self, *, visual, audio: Pairs.forward(self, audio, visual),
            lambda self, **inputs: Pairs.forward(self, **inputs),
            lambda self, *inputs: Pairs.forward(self, *inputs),
        ):
            torch.testing.assert_close(agm.masked_logits(_with_forward(network, forward), inputs), expected)


def _with_forward(network: nn.Module, forward: Callable[..., Tensor]) -> nn.Module:
    changed = copy.deepcopy(network)
    changed.__class__ = type("Changed", (type(network),), {"forward": forward})
    return changed


class TestRefusals:
    inputs: ClassVar = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}

    def network(self) -> Pairs:
        return Pairs(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"masked": "fast"}, "`masked` to be 'exact' or 'shared'"),
            ({"absent": {"smell": 0}}, "`absent`.*smell"),
            ({"absent": {"audio": "zero"}}, "`absent` for `audio`"),
            ({"absent": {"audio": torch.zeros(5)}}, r"shape of one row, \(6,\), but got \(5,\)"),
            ({"absent": {"audio": lambda x: x[:, :3]}}, "callable in `absent` for `audio`"),
            ({"absent": {"audio": lambda x: x[:2]}}, "callable in `absent` for `audio`"),
            ({"absent": {"audio": lambda x: x.float()}}, "callable in `absent` for `audio`"),
            ({"encoders": {"audio": "sound_net"}}, "no 'sound_net'.*audio_net, visual_net, head"),
            ({"encoders": {"smell": "audio_net"}}, "`encoders`.*smell"),
            ({"encoders": {"audio": ""}}, "part of the network"),
            ({"encoders": {"audio": "head", "visual": "head.0"}}, "no module in common|no 'head.0'"),
        ],
    )
    def test_settings(self, changed: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            agm.masked_logits(self.network(), self.inputs, **changed)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"audio": rows(4, 6)}, "two or more"),
            ({"audio": rows(4, 6), "smell": rows(4, 6)}, r"does not take \['smell'\]"),
            ({"audio": rows(4, 6), "visual": rows(4, 6), "text": rows(4, 6)}, r"does not take \['text'\]"),
            (
                {"audio": rows(4, 6), "visual": rows(3, 6)},
                "same number of samples.*'audio': 4, 'visual': 3.*to_dense_batch",
            ),
            ({"audio": rows(4, 6), "visual": "x"}, "`visual` to be a tensor"),
            ({"audio": rows(4, 6), "visual": (rows(4, 6), rows(3))}, r"`visual`.*sizes \[3, 4\]"),
        ],
    )
    def test_inputs(self, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            agm.masked_logits(self.network(), inputs)

    @pytest.mark.parametrize("output", [lambda z: (z, z), lambda z: z[:2], lambda z: z.mean(0)])
    def test_an_output_that_is_not_logits(self, output: Callable[[Tensor], Any]) -> None:
        network = _with_forward(self.network(), lambda self, audio, visual: output(Pairs.forward(self, audio, visual)))
        with pytest.raises(ValueError, match=r"logits of shape \(batch, classes\)|`output=`, one of \{0: a tensor"):
            agm.masked_logits(network, self.inputs)


def test_without_gradients_the_numbers_are_the_same() -> None:
    network = Three().double().eval()
    expected = agm.masked_logits(network, three_inputs())
    for options in ({}, {"encoders": PATHS}):
        with torch.no_grad():
            masked = agm.masked_logits(network, three_inputs(), **options)
        torch.testing.assert_close(masked, expected)
        assert not masked.requires_grad


def test_half_precision_inside_autocast() -> None:
    network = Three()
    inputs = {name: x.float() for name, x in three_inputs().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for options in ({}, {"encoders": PATHS}):
            masked = agm.masked_logits(network, inputs, **options)
            assert masked.dtype == torch.bfloat16
            F.cross_entropy(masked[-1].float(), torch.zeros(5, dtype=torch.int64)).backward()


def test_recurrent_encoders_with_dropout() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 5, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    inputs = {"audio": rows(4, 6), "visual": rows(4, 7, 4, seed=1)}
    for options in ({}, {"encoders": BOTH}):
        network = Pairs(nn.Linear(6, 5), Recurrent(), 10)
        compare(network, inputs, **options)
        assert network.visual_net.rnn.dropout == 0.5
