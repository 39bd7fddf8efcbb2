"""The recorded training runs, and the small networks that they were recorded with, under their parameter names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

_FOLDER = Path(__file__).parent


def _encoder(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.ReLU())


class _Head(nn.Module):
    def __init__(self, inputs: int, classes: int, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.Linear(inputs, classes))

    def forward(self, features: Tensor) -> Tensor:
        return getattr(self, self.name)(features)


class _TwoLate(nn.Module):
    def __init__(self, audio: int, visual: int, classes: int) -> None:
        super().__init__()
        self.audio_net, self.visual_net = _encoder(audio), _encoder(visual)
        self.fusion_module = _Head(12, classes, "fc_out")

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fusion_module(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


class _TwoEarly(nn.Module):
    def __init__(self, audio: int, visual: int, classes: int) -> None:
        super().__init__()
        self.audio_net, self.visual_net = _encoder(audio), _encoder(visual)
        self.mm = _encoder(12)
        self.head = _Head(6, classes, "fc")

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(self.mm(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)))


class _ThreeLate(nn.Module):
    def __init__(self, audio: int, visual: int, text: int, classes: int) -> None:
        super().__init__()
        self.audio_encoder, self.visual_encoder, self.text_encoder = _encoder(audio), _encoder(visual), _encoder(text)
        self.head = _Head(18, classes, "fc")

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        features = [self.audio_encoder(audio), self.visual_encoder(visual), self.text_encoder(text)]
        return self.head(torch.cat(features, 1))


class _Factorised(nn.Module):
    """A recorded network under the names that need no paths: `encoders`, and `fuse` for the rest."""

    def __init__(self, network: nn.Module, encoders: dict[str, str]) -> None:
        super().__init__()
        self.network = network
        self.encoders = {name: network.get_submodule(path) for name, path in encoders.items()}
        self.rest = [child for name, child in network.named_children() if name not in encoders.values()]

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return nn.Sequential(*self.rest)(torch.cat(list(features.values()), 1))

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.fuse({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


# file -> network, modalities in bit order, max_gap, tolerance of gradients
_FILES = {
    "two_late": (_TwoLate, ("audio", "visual"), 10.0, 1e-6),
    "two_early": (_TwoEarly, ("audio", "visual"), 10.0, 1e-6),
    "two_saturated": (_TwoLate, ("audio", "visual"), 10.0, 2e-5),
    "three_late": (_ThreeLate, ("audio", "visual", "text"), 7.0, 1e-6),
}


class Recording:
    def __init__(self, name: str) -> None:
        self.arrays = dict(np.load(_FOLDER / f"{name}.npz"))
        self.kind, self.modalities, self.max_gap, self.tolerance = _FILES[name]
        self.steps = len(self.arrays["target"])
        self.alpha, self.lr = float(self.arrays["alpha"]), float(self.arrays["lr"])

    def target(self, step: int) -> Tensor:
        return torch.from_numpy(self.arrays["target"][step])

    def inputs(self, step: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: torch.from_numpy(self.arrays[name][step]).to(dtype) for name in self.modalities}

    def masked_logits(self, step: int) -> Tensor:
        return torch.from_numpy(self.arrays["masked_logits"][step][1:])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def encoders(self) -> dict[str, str]:
        suffix = "encoder" if len(self.modalities) == 3 else "net"
        return {name: f"{name}_{suffix}" for name in self.modalities}

    def factorised(self, network: nn.Module) -> nn.Module:
        return _Factorised(network, self.encoders())

    def network(self) -> nn.Module:
        widths = {name: self.arrays[name].shape[-1] for name in self.modalities}
        network = self.kind(**widths, classes=self.arrays["masked_logits"].shape[-1])
        network.load_state_dict(self.tensors("init."))
        return network


@pytest.fixture(params=list(_FILES))
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)
