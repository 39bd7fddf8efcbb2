"""Encoders as people have them, and what a batch shows that need not hold in the next."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm

from .plain_network import BATCH, CLASSES, ENCODERS, NAMES, TARGET, Factorised, Net, inputs


class TestEncoders:
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_methods(self, masked: Any) -> None:
        class Clip(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.audio_net, self.visual_net = Net().audio_net, Net().visual_net

            def encode(self, audio: Tensor) -> Tensor:
                return F.normalize(self.audio_net(audio), dim=-1)

        class Wrapping(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.clip, self.head = Clip(), nn.Linear(10, CLASSES).double()

            def embed(self, visual: Tensor) -> Tensor:
                return self.clip.visual_net(visual) * 2.0

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.head(torch.cat([self.clip.encode(audio), self.embed(visual)], 1))

        encoders = {"audio": "clip.encode", "visual": "embed"}
        model = agm.AGM(Wrapping(), NAMES, encoders=encoders, masked=masked)
        for _ in range(2):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)
        assert model.plan().count("rest of the network", BATCH) == 2 * BATCH + 1
        with pytest.raises(ValueError, match=r"no 'clip\.decode'"):
            agm.AGM(Wrapping(), NAMES, encoders={"audio": "clip.decode"})

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_a_tower_that_both_share(self, masked: Any, backwards: bool) -> None:
        class Siamese(Net):
            def __init__(self) -> None:
                super().__init__()
                self.tower = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.2)).double()

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                if backwards:
                    right, left = self.tower(visual), self.tower(audio)
                else:
                    left, right = self.tower(audio), self.tower(visual)
                return self.head(torch.cat([left, right], 1))

        model = agm.AGM(Siamese(), NAMES, encoders={"audio": "tower", "visual": "tower"}, masked=masked)
        for _ in range(2):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)

    def test_without_gradients_the_sum_is_kept(self) -> None:
        class Frozen(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                with torch.no_grad():
                    left = self.audio_net(audio)
                return self.head(torch.cat([left, self.visual_net(visual)], 1))

        model = agm.AGM(Frozen(), NAMES, encoders=ENCODERS)
        assert agm.verify(model, inputs(), TARGET).ok
        model(**inputs(), target=TARGET)
        assert "they sum up" in str(model.plan())


class TestEvidence:
    """What held in one batch need not hold in the next."""

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_augmentation_that_begins_later(self, masked: Any) -> None:
        class Noisy(Net):
            epoch = 0

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                if self.training and self.epoch:
                    audio = audio + torch.randn_like(audio)
                return self.logits(audio, visual)

        network = Noisy()
        model = agm.AGM(network, NAMES, encoders=ENCODERS, masked=masked)
        for step in range(4):
            network.epoch = step // 2
            found = agm.verify(model, inputs(step), TARGET)
            assert found.ok, str(found)
            model(**inputs(step), target=TARGET)

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_a_gate_that_opens_later(self, masked: Any) -> None:
        class Gated(Net):
            def __init__(self) -> None:
                super().__init__()
                self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))
                self.frozen = nn.Linear(4, 4).double().requires_grad_(False)

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                with torch.no_grad():
                    injected = self.frozen(visual)
                return self.logits(audio + torch.tanh(self.gate) * injected, visual)

        network = Gated()
        model = agm.AGM(network, NAMES, encoders=ENCODERS, masked=masked)
        for step in range(3):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)
            with torch.no_grad():
                network.gate.fill_(0.5 * (step + 1))

    @pytest.mark.parametrize(
        "options", [{}, {"masked": "shared"}, {"max_rows": 5}, {"masked": "shared", "checkpoint": True}]
    )
    def test_a_forward_that_departs_from_fuse_later(self, options: dict[str, Any]) -> None:
        class Beside(Factorised):
            def __init__(self) -> None:
                super().__init__()
                self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                features = {"audio": self.audio_net(audio), "visual": self.visual_net(visual)}
                return self.fuse(features) + self.gate * features["audio"][:, :CLASSES]

        network = Beside()
        model = agm.AGM(network, **options)
        for opening in (0.0, 0.5, 1.0):
            with torch.no_grad():
                network.gate.fill_(opening)
            found = agm.verify(model, inputs(), TARGET)  # the gradient of the gate too, while it is closed
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)
