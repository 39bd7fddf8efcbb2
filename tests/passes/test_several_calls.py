"""Encoders that forward calls several times for one modality: what they take is what the plan says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .meeting_networks import NAMES, PATHS, TARGET, batch

ROWS: list[int] = []  # out of the network's reach


class Counting(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        ROWS.append(len(x))
        return super().forward(x)


class Scales(nn.Module):
    """Encodes its input at two scales."""

    def __init__(self, dropout: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        encoder = Counting(5, 8)
        self.audio_net = nn.Sequential(encoder, nn.Dropout(0.2)) if dropout else encoder
        self.visual_net, self.head = nn.Linear(5, 8), nn.Linear(16, 3)
        self.double()

    def encoded(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.audio_net(audio) + self.audio_net(audio * 2)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoded(audio, visual), self.visual_net(visual)], 1).tanh())


class Recurrent(Scales):
    def encoded(self, audio: Tensor, visual: Tensor) -> Tensor:
        for _ in range(3):
            audio = audio + self.audio_net(audio)[:, :5]
        return self.audio_net(audio)


class Joining(Scales):
    """The second time what it has of the other modality is in its input."""

    def encoded(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.audio_net(audio) + self.audio_net(audio + visual)


class Mixing(Scales):
    """Each subset has passes of its own."""

    def encoded(self, audio: Tensor, visual: Tensor) -> Tensor:
        features = super().encoded(audio, visual)
        return features - features.mean(0)


OPTIONS: list[dict[str, Any]] = [{}, {"masked": "shared"}, {"masked": "shared", "absent_gradient": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("kind", [Scales, Recurrent, Joining, Mixing])
def test_the_plan_counts_all_calls(kind: type[Scales], dropout: bool, options: dict[str, Any]) -> None:
    model = agm.AGM(kind(dropout), NAMES, encoders=PATHS, **options)
    model._passes.record.looks = 0  # at absent rows that amplify
    for step in range(3):
        ROWS.clear()
        model(**batch(), target=TARGET)
        assert step == 0 or sum(ROWS) == model.plan().count("encoder `audio`", 6)
    result = agm.verify(model, batch(), TARGET)
    assert result.ok, str(result)


def test_no_rows_go_along_in_vain() -> None:
    """In the one pass of a first call those of eval mode would be encoded, and then again with the other call's."""
    model = agm.AGM(Scales(dropout=True), NAMES, encoders=PATHS)
    model._passes.record.looks = 0
    for _ in range(3):
        ROWS.clear()
        model(**batch(), target=TARGET)
    assert ROWS == [6, 6, 7, 7]


class Tower(Mixing):
    """One encoder of both, each at two scales."""

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        features = torch.cat([self.encoded(audio, visual), self.encoded(visual, audio)], 1)
        return self.head(features.tanh())


class Once(Tower):
    """At one, of which only a pass of all rows shows whose it is."""

    def encoded(self, audio: Tensor, visual: Tensor) -> Tensor:
        features = self.audio_net(audio * 2)
        return features - features.mean(0)


@pytest.mark.parametrize("options", [*OPTIONS, {"absent_gradient": False}], ids=str)
@pytest.mark.parametrize("kind", [Tower, Once])
def test_the_plan_counts_the_calls_of_a_tower(kind: type[Tower], options: dict[str, Any]) -> None:
    model = agm.AGM(kind(), NAMES, encoders=dict.fromkeys(NAMES, "audio_net"), **options)
    model._passes.record.looks = 0
    for step in range(3):
        ROWS.clear()
        model(**batch(), target=TARGET)
        assert step == 0 or sum(ROWS) == sum(model.plan().count(f"encoder `{name}`", 6) for name in NAMES)
    result = agm.verify(model, batch(), TARGET)
    assert result.ok, str(result)
