"""Inputs of several tensors, and structures inside a network."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .separate import BOTH, Pairs, compare, rows


class MaskedMean(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 5)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        hidden = torch.tanh(self.linear(x["values"])).masked_fill(x["padding"].unsqueeze(-1), 0.0)
        return hidden.sum(1) / (~x["padding"]).sum(1, keepdim=True)


class Lengths(nn.Module):
    """Token ids with lengths; the id 0 is a word like any other, 9 is the pad."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        ids, lengths = x
        inside = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        return (self.embedding(ids) * inside.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)


class TestPytrees:
    padding = torch.arange(7) >= torch.tensor([7, 3, 5, 1]).unsqueeze(1)

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}])
    def test_a_padding_mask_stays(self, options: dict[str, Any]) -> None:
        inputs = {"audio": {"values": rows(4, 7, 3), "padding": self.padding}, "visual": rows(4, 6)}
        absent = {"audio": {"values": torch.zeros(4, 7, 3, dtype=torch.float64), "padding": self.padding}}
        compare(Pairs(MaskedMean(3), nn.Linear(6, 5), 10), inputs, naive_absent=absent, **options)

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}])
    @pytest.mark.parametrize("absent", [9, (9, None), lambda x: (torch.full_like(x[0], 9), x[1])])
    def test_token_ids_get_a_pad_id(self, options: dict[str, Any], absent: Any) -> None:
        ids, lengths = torch.randint(9, (4, 7)), torch.tensor([7, 3, 5, 1])
        inputs = {"audio": rows(4, 6), "visual": (ids, lengths)}
        compare(
            Pairs(nn.Linear(6, 5), Lengths(), 11),
            inputs,
            absent={"visual": absent},
            naive_absent={
                "audio": torch.zeros(4, 6, dtype=torch.float64),
                "visual": (torch.full_like(ids, 9), lengths),
            },
            **options,
        )

    def test_token_ids_alone_are_zero_by_default(self) -> None:
        class Words(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(10, 6)

            def forward(self, ids: Tensor) -> Tensor:
                return self.embedding(ids).mean(1)

        inputs = {"audio": rows(4, 6), "visual": torch.randint(10, (4, 7))}
        for options in ({}, {"encoders": BOTH}):
            compare(Pairs(nn.Linear(6, 5), Words(), 11), inputs, **options)

    def test_ids_in_a_pytree_must_be_said(self) -> None:
        inputs = {"audio": rows(4, 6), "visual": (torch.randint(9, (4, 7)), torch.tensor([7, 3, 5, 1]))}
        with pytest.raises(ValueError, match=r"`absent`.*`visual`.*int64\[4, 7\].*pad id"):
            agm.masked_logits(Pairs(nn.Linear(6, 5), Lengths(), 11).double(), inputs)

    def test_a_learned_absent_row_gets_its_gradient(self) -> None:
        token = nn.Parameter(rows(6, seed=3))
        network = Pairs(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()
        inputs = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}
        for options in ({}, {"encoders": BOTH}):
            token.grad = None
            masked = agm.masked_logits(network, inputs, absent={"visual": token}, **options)
            upstream = torch.ones_like(masked)
            masked.backward(upstream)
            (expected,) = torch.autograd.grad(network(inputs["audio"], token.expand(4, 6)).sum(), token)
            torch.testing.assert_close(token.grad, expected)


class Frames(nn.Module):
    """Frames folded into rows inside the network, as in audio-visual classifiers."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.visual_net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.head = nn.Linear(10, 3)
        self.order = order

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        batch, frames, width = visual.shape
        if self.order == "sample":
            hidden = self.visual_net(visual.reshape(batch * frames, width)).view(batch, frames, -1).mean(1)
        else:
            hidden = self.visual_net(visual.transpose(0, 1).reshape(-1, width)).view(frames, batch, -1).mean(0)
        return self.head(torch.cat([self.audio_net(audio), hidden], 1))


class SequenceFirst(nn.Module):
    """An encoder whose samples are in the second dimension and which returns a tuple with states in a third place."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Linear(6, 5)
        self.visual_net = nn.GRU(4, 5, num_layers=2)
        self.head = nn.Linear(15, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        outputs, states = self.visual_net(visual.transpose(0, 1))
        return self.head(torch.cat([self.audio_net(audio), outputs.mean(0), states[0]], 1))


class TestStructuresInsideTheNetwork:
    @pytest.mark.parametrize("batch", [2, 5])
    def test_frames_as_rows(self, batch: int) -> None:
        inputs = {"audio": rows(batch, 6), "visual": rows(batch, 4, 4, seed=1)}
        compare(Frames("sample"), inputs)
        compare(Frames("sample"), inputs, encoders=BOTH)

    def test_frames_in_another_order_are_refused(self) -> None:
        inputs = {"audio": rows(5, 6), "visual": rows(5, 4, 4, seed=1)}
        compare(Frames("frame"), inputs)
        with pytest.raises(ValueError, match=r"`visual`.*another order than the samples'"):
            agm.masked_logits(Frames("frame").double(), inputs, encoders=BOTH)

    @pytest.mark.parametrize("frames", [3, 8])
    def test_sequence_first_and_tuples(self, frames: int) -> None:
        inputs = {"audio": rows(4, 6), "visual": rows(4, frames, 4, seed=1)}
        compare(SequenceFirst(), inputs, encoders=BOTH)
        compare(SequenceFirst(), inputs, encoders=BOTH, masked="shared")
        compare(SequenceFirst().eval(), {n: x[:1] for n, x in inputs.items()}, encoders=BOTH, masked="shared")

    def test_an_encoder_called_twice(self) -> None:
        class Twice(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                hidden = self.audio_net(audio) + self.audio_net(audio.flip(1))
                return self.head(torch.cat([hidden, self.visual_net(visual)], 1))

        inputs = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}
        for masked in ("exact", "shared"):
            compare(Twice(nn.Linear(6, 5), nn.Linear(6, 5), 10), inputs, encoders=BOTH, masked=masked)

    def test_a_skip_connection_around_an_encoder(self) -> None:
        class Skip(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual) + visual], 1))

        inputs = {"audio": rows(4, 6), "visual": rows(4, 5, seed=1)}
        compare(Skip(nn.Linear(6, 5), nn.Linear(5, 5), 10), inputs, encoders=BOTH)

    @pytest.mark.parametrize("samples", [4, 1])
    def test_an_encoder_that_sees_the_other_modality(self, samples: int) -> None:
        class Crossed(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.head(torch.cat([self.audio_net(audio + visual), self.visual_net(visual)], 1))

        network = Crossed(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()
        inputs = {"audio": rows(samples, 6), "visual": rows(samples, 6, seed=1)}
        compare(network, inputs, encoders=BOTH)
        compare(network, inputs)

    def test_an_encoder_that_is_not_called_is_refused(self) -> None:
        network = Pairs(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()
        network.unused = nn.Linear(6, 5).double()
        inputs = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}
        with pytest.raises(ValueError, match="to call the encoder of `audio`"):
            agm.masked_logits(network, inputs, encoders={"audio": "unused"})
