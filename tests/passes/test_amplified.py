"""The look for absent rows that amplify leaves no trace, and no step fails because of it."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import agm

NAMES = ("audio", "visual")
TARGET = torch.tensor([0, 1, 2, 0])
ENCODERS = {"audio": "audio_net", "visual": "visual_net"}


class Net(nn.Module):
    def __init__(self, audio_net: nn.Module) -> None:
        super().__init__()
        self.audio_net, self.visual_net, self.head = audio_net, nn.Linear(3, 6), nn.Linear(12, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        features = self.audio_net(audio)
        features = features.abs() if features.is_complex() else features
        return self.head(torch.cat([features, self.visual_net(visual)], 1))


class Checkpointed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(torch.tanh, super().forward(x), use_reentrant=True)


class Keeping(nn.Linear):
    """Keeps an activation and its gradient, as Grad-CAM does."""

    features: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.features = super().forward(x).tanh()
        if self.features.requires_grad:
            self.features.retain_grad()
        return self.features


class Hooking(nn.Linear):
    """Gives an activation a hook."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        if self.training and output.requires_grad:
            output.register_hook(self.seen)
        return output


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"audio": torch.randn(4, 5), "visual": torch.randn(4, 3)}


@pytest.mark.parametrize("encoders", [ENCODERS, None], ids=["encoders", "one piece"])
class TestLook:
    def test_reentrant_checkpoints_and_complex_features_train(self, encoders: dict[str, str] | None) -> None:
        for encoder in (Checkpointed(5, 6), nn.Linear(5, 6, dtype=torch.complex64)):
            given = inputs()
            given["audio"] = given["audio"].to(next(encoder.parameters()).dtype)
            model = agm.AGM(Net(encoder), NAMES, encoders=encoders)
            F.cross_entropy(model(**given, target=TARGET), TARGET).backward()
            assert all(parameter.grad is not None for parameter in encoder.parameters())

    def test_no_hook_is_called(self, encoders: dict[str, str] | None) -> None:
        seen: list[str] = []
        encoder = Hooking(5, 6)
        encoder.seen = lambda gradient: seen.append("tensor")
        encoder.weight.register_hook(lambda gradient: seen.append("parameter"))
        encoder.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append("accumulated"))
        encoder.register_full_backward_hook(lambda *given: seen.append("module"))
        model = agm.AGM(Net(encoder), NAMES, encoders=encoders)
        logits = model(**inputs(), target=TARGET)
        assert seen == []
        F.cross_entropy(logits, TARGET).backward()
        assert set(seen) == {"tensor", "parameter", "accumulated", "module"}

    def test_retained_gradients_are_those_of_the_loss(self, encoders: dict[str, str] | None) -> None:
        net = Net(Keeping(5, 6))
        model = agm.AGM(net, NAMES, encoders=encoders, alpha=0.0)
        F.cross_entropy(model(**inputs(), target=TARGET), TARGET).backward()
        got = net.audio_net.features.grad.clone()
        F.cross_entropy(net(**inputs()), TARGET).backward()
        torch.testing.assert_close(got, net.audio_net.features.grad)

    def test_a_head_of_zeros_is_looked_behind_later(self, encoders: dict[str, str] | None) -> None:
        normed = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, eps=1e-12), nn.Linear(6, 6), nn.LayerNorm(6, eps=1e-12))
        net = Net(normed)
        for parameter in (normed[0].bias, normed[2].bias, net.head.weight):
            nn.init.zeros_(parameter)
        model = agm.AGM(net, NAMES, encoders=encoders)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(**inputs(), target=TARGET)
            assert not [one for one in caught if "An absent `audio` gives" in str(one.message)]
            nn.init.normal_(net.head.weight)
            model(**inputs(), target=TARGET)
        assert len([one for one in caught if "An absent `audio` gives" in str(one.message)]) == 1
