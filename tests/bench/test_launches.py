"""Operations that a step sends to the device, over a joint one: counted on a CPU, bound on every machine."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import agm.models
from bench.launches import Launches, launches
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


_library = torch.library.Library("agm_launches", "DEF")
_library.define("attention(Tensor query, Tensor key, Tensor value) -> Tensor")
_library.define("attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor, Tensor)")
_library.impl("attention", lambda query, key, value: value.clone(), "CPU")
_library.impl("attention_backward", lambda grad, *inputs: tuple(torch.zeros_like(one) for one in inputs), "CPU")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return torch.ops.agm_launches.attention(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.agm_launches.attention_backward(grad, *ctx.saved_tensors)


@pytest.fixture
def attention_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is one operation each way, as on a GPU; with a dropout a CPU takes a dozen. Numbers do not matter."""
    name = "scaled_dot_product_attention"
    monkeypatch.setattr(F, name, lambda q, k, v, *_, **__: _Attention.apply(q, k, v))


def on_a_gpu(row: Launches) -> float:
    """Operations, where a dropout is one each way: a CPU draws, divides and multiplies, and multiplies again.

    Nor does anything look at class indices there.
    """
    checks = row.names["aten.aminmax.default"] + row.names["aten._local_scalar_dense.default"]
    return row.count - 2 * row.names["aten.bernoulli_.float"] - checks


def ratios(network: Network, modalities: int, variants: tuple[str, ...]) -> dict[str, float]:
    joint, *rows = launches(network, "late", modalities, 4, torch.device("cpu"), variants)
    assert joint.variant == "joint"
    return {row.variant: on_a_gpu(row) / on_a_gpu(joint) for row in rows}


def test_residual_networks() -> None:
    bounds = {"shared": 0.98, "exact": 0.98}  # refreshed takes sixteen steps: below, on smaller networks
    found = ratios(resnets(), 2, tuple(bounds))
    assert found.keys() == bounds.keys()
    assert {name: ratio for name, ratio in found.items() if ratio > bounds[name]} == {}


def test_transformers_with_dropout(attention_of_a_gpu: None) -> None:
    bounds = {"shared": 1.02, "exact": 1.02, "refreshed": 1.03}
    found = ratios(transformers(), 3, tuple(bounds))
    assert found.keys() == bounds.keys()
    assert {name: ratio for name, ratio in found.items() if ratio > bounds[name]} == {}
