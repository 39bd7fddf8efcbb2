"""Operations that a step sends to the device, over a joint one: counted on a CPU, bound on every machine."""

from dataclasses import replace

import pytest
import torch

import agm.models
from bench.launches import launches
from bench.networks import NETWORKS, Encoder, Network


def resnets() -> Network:
    """Two ResNet-18, as in AV-MNIST, on small images."""
    encoders = tuple(Encoder(name, (1, 17, 17), lambda pool: agm.models.ResNet18(1)) for name in ("audio", "image"))
    return replace(NETWORKS["av-mnist"], encoders=encoders)


def transformers() -> Network:
    """Three transformers of eight layers, as in UR-FUNNY, narrow ones."""

    def encoder(pool: object) -> torch.nn.Module:
        return agm.models.TransformerEncoder(4, width=8, num_layers=8, num_heads=2)

    encoders = tuple(Encoder(name, (5, 4), encoder) for name in ("audio", "visual", "text"))
    return replace(NETWORKS["ur-funny"], encoders=encoders)


@pytest.mark.parametrize(
    ("network", "modalities", "bounds"),
    [
        (resnets(), 2, {"shared": 1.08, "exact": 1.12, "refreshed": 1.03}),
        (transformers(), 3, {"shared": 1.05, "exact": 1.08, "refreshed": 1.03}),
    ],
)
def test_bounds(network: Network, modalities: int, bounds: dict[str, float]) -> None:
    rows = launches(network, "late", modalities, 4, torch.device("cpu"), tuple(bounds))
    found = {row.variant: row.of_joint for row in rows}
    assert found.pop("joint") == 1.0
    assert found.keys() == bounds.keys()
    assert {name: ratio for name, ratio in found.items() if ratio > bounds[name]} == {}
