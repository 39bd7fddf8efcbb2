"""Masked logits from separate passes, in plain loops, and small networks of three modalities that the tests share."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import agm

MODALITIES = ("audio", "visual", "text")
SUBSETS = range(1, 8)


def naive(network: nn.Module, inputs: Mapping[str, Any], absent: Mapping[str, Any] | None = None) -> Tensor:
    """The definition: a joint pass in training mode, then every other subset on its own in eval mode."""
    names = list(inputs)
    zeros = {n: pytree.tree_map(torch.zeros_like, v) for n, v in inputs.items()} | dict(absent or {})
    joint = network(**inputs)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    rows = [
        network(**{n: inputs[n] if subset >> m & 1 else zeros[n] for m, n in enumerate(names)})
        for subset in range(1, 2 ** len(names) - 1)
    ]
    for module, mode in modes.items():
        module.training = mode
    return torch.stack([*rows, joint])


def compare(
    network: nn.Module,
    inputs: Mapping[str, Any],
    *,
    absent: Mapping[str, Any] | None = None,
    naive_absent: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Logits, every gradient and the running statistics of agm.masked_logits and of the definition."""
    network = network.double()
    network.zero_grad()
    expected_network = copy.deepcopy(network)
    torch.manual_seed(1)
    expected = naive(expected_network, inputs, absent if naive_absent is None else naive_absent)
    torch.manual_seed(1)
    masked = agm.masked_logits(network, inputs, absent=absent, **options)
    torch.testing.assert_close(masked, expected)
    upstream = torch.randn_like(masked)
    masked.backward(upstream)
    expected.backward(upstream)
    for (name, parameter), other in zip(network.named_parameters(), expected_network.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(network.state_dict(), expected_network.state_dict())


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def three_inputs(batch: int = 5) -> dict[str, Tensor]:
    return {"audio": rows(batch, 4), "visual": rows(batch, 6, seed=1), "text": rows(batch, 3, seed=2)}


def encoder(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 5))


class Three(nn.Module):
    """Three encoders and a head that depends on the mode and is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders_ = nn.ModuleDict({"audio": encoder(4), "visual": encoder(6), "text": encoder(3)})
        self.head = nn.Sequential(nn.Linear(15, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 4))

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        inputs = {"audio": audio, "visual": visual, "text": text}
        return self.head(torch.cat([self.encoders_[name](x) for name, x in inputs.items()], 1))


class ThreeFactorised(Three):
    """The same network under the names that need no paths."""

    @property
    def encoders(self) -> nn.ModuleDict:
        return self.encoders_

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features[name] for name in MODALITIES], 1))

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        inputs = {"audio": audio, "visual": visual, "text": text}
        return self.fuse({name: self.encoders_[name](x) for name, x in inputs.items()})


PATHS = {name: f"encoders_.{name}" for name in MODALITIES}


class Pairs(nn.Module):
    """Two modalities in any structure; each encoder gets its modality's input as it is."""

    def __init__(self, audio: nn.Module, visual: nn.Module, head: int) -> None:
        super().__init__()
        self.audio_net, self.visual_net = audio, visual
        self.head = nn.Linear(head, 3)

    def forward(self, audio: Any, visual: Any) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


BOTH = {"audio": "audio_net", "visual": "visual_net"}
