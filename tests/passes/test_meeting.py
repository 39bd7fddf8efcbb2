"""Encoders in which rows meet, whatever they have for passes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .networks import BOTH, Factorised, Pairs, inputs, rows, separate


class Centred(nn.Module):
    """Takes the mean of the batch from its features."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.layer(x))
        return features - features.mean(0)


class Encoding(Pairs):
    def encode(self, x: Tensor) -> Tensor:
        return self.audio_net(x)

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [self.encode(audio), self.visual_net(visual)]


METHOD = {"audio": "encode", "visual": "visual_net"}


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize(
    ("network", "options"),
    [
        (lambda: Pairs(Centred()), {"encoders": BOTH}),
        (lambda: Pairs(Centred()), {"encoders": BOTH, "passes": "two"}),
        (lambda: Pairs(Centred(norm=True)), {"encoders": BOTH, "passes": "two"}),
        (lambda: Encoding(Centred()), {"encoders": METHOD}),
        (Factorised, {"passes": "two"}),
    ],
    ids=["one pass", "two", "norm", "method", "fuse"],
)
def test_a_mean_over_the_batch_is_that_of_present_rows(network: Any, options: dict[str, Any], batch: int) -> None:
    torch.manual_seed(0)
    net = network()
    if isinstance(net, Factorised):
        net.encoders["audio"] = Centred().double()
    given = inputs(batch)
    expected = separate(copy.deepcopy(net), given)
    torch.testing.assert_close(agm.masked_logits(net, given, **options), expected)


class Counted(nn.Module):
    """An embedding whose gradients are divided by how often each token is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5, scale_grad_by_freq=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).tanh().mean(1)


class CountedInFunction(Counted):
    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.table.weight
        return nn.functional.embedding(tokens, weight, scale_grad_by_freq=True).tanh().mean(1)


TOKENS = {"audio": torch.arange(20).reshape(4, 5) % 7, "visual": rows(4, 6, seed=1)}
TARGET = torch.tensor([0, 1, 2, 0])


class TestGradientsByFrequency:
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_of_an_encoder_they_are_refused(self, masked: Any) -> None:
        with pytest.raises(ValueError, match=r"`audio_net.table` divides its gradient by counts .* Set scale_grad"):
            agm.AGM(Pairs(Counted()), ("audio", "visual"), encoders=BOTH, masked=masked).plan()
        network = Factorised()
        network.encoders["audio"] = Counted().double()
        with pytest.raises(ValueError, match="`table` divides its gradient by counts"):
            agm.AGM(network, masked=masked).plan()

    def test_of_one_piece_they_are_those_of_each_subset(self) -> None:
        model = agm.AGM(Pairs(Counted()), ("audio", "visual"))
        assert "one subset at a time, because `audio_net.table` divides" in str(model.plan())
        assert agm.verify(model, TOKENS, TARGET).ok

    def test_in_a_function_they_end_the_one_pass(self) -> None:
        model = agm.AGM(Pairs(CountedInFunction()), ("audio", "visual"), encoders=BOTH)
        model.module.audio_net.table.scale_grad_by_freq = False
        model(**TOKENS, target=TARGET)
        assert "(scale_grad_by_freq)" in str(model.plan())
