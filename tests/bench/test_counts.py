"""What a step costs in what does not wobble, within the bounds of bench/thresholds.toml."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import agm
from agm.models import SmallCNN
from agm.ops import _library
from bench import step
from bench.cases import Options
from bench.counting import Dispatched, EncoderPasses
from bench.networks import NETWORKS, Encoder, Network
from bench.shared import samples
from bench.step import Training
from bench.thresholds import load

CPU = torch.device("cpu")
BATCH = 8


def training(network: str, fusion: str, count: int, *variants: str, device: torch.device = CPU) -> Training:
    options = Options(device, variants=variants)
    return step.prepare(NETWORKS[network], fusion, count, BATCH, options)


def rows(made: Training, variant: str) -> dict[str, int]:
    made.run(variant)
    with EncoderPasses(made.network.encoders) as counted:
        made.run(variant)
    return {name: sum(rows) for name, rows in counted.rows.items()}


@pytest.mark.parametrize(("fusion", "count"), [("late", 2), ("late", 6), ("early", 3), ("cross-attention", 2)])
@pytest.mark.parametrize("variant", ["joint", "exact", "shared"])
def test_rows_through_the_encoders(fusion: str, count: int, variant: str) -> None:
    """The bound holds whatever the fusion and the number of modalities, and the plan says the same."""
    made = training("tiny", fusion, count, variant)
    bound = load()["encoder_rows"][variant]
    found = rows(made, variant)
    assert len(found) == count
    assert set(found.values()) == {bound["batches"] * BATCH + bound["rows"]}
    if variant != "joint":
        plan = made.plans[variant]()
        assert found == {name: plan.count(f"encoder `{name}`", BATCH) for name in found}


def test_rows_of_encoders_that_do_not_depend_on_the_mode() -> None:
    bound = load()["encoder_rows"]["alike"]
    found = rows(training("tiny-alike", "early", 3, "exact"), "exact")
    assert set(found.values()) == {bound["batches"] * BATCH + bound["rows"]}


@pytest.mark.parametrize("variant", ["sequential", "vectorised", "parameter-scaling"])
def test_rivals_take_a_pass_a_subset(variant: str) -> None:
    found = rows(training("tiny", "late", 3, variant), variant)
    assert set(found.values()) == {7 * BATCH}


def test_frames_are_rows() -> None:
    """Three frames of a sample are three rows of its encoder."""
    video = Encoder("video", (3, 1, 8, 8), lambda pool: SmallCNN(1, 8, pool=pool))
    network = Network("video", (video, NETWORKS["tiny"].encoders[1]), 3, BATCH, BATCH, 1.0, ())
    made = step.prepare(network, "late", 2, BATCH, Options(CPU, variants=("exact",)))
    assert rows(made, "joint") == {"video": 3 * BATCH, "image": BATCH}
    assert rows(made, "exact") == {"video": 3 * (2 * BATCH + 1), "image": 2 * BATCH + 1}


@pytest.mark.parametrize("variant", ["exact", "shared"])
@pytest.mark.parametrize("count", [2, 6])
def test_peak_memory(variant: str, count: int) -> None:
    """Of the small CNNs, whose activations are most of what a step needs, and not the rows of 62 subsets."""
    options = Options(CPU, variants=(variant,))
    made = step.prepare(NETWORKS["small"], "late", count, 16, options)
    found = step.notes(made)
    assert 1 <= found[variant]["memory_ratio"] <= load()["memory"][variant]


def test_a_rival_keeps_the_activations_of_every_pass() -> None:
    """So the bound of `exact` is one that can be broken."""
    made = step.prepare(NETWORKS["small"], "late", 3, 16, Options(CPU, variants=("sequential",)))
    assert step.notes(made)["sequential"]["memory_ratio"] > 2 * load()["memory"]["exact"]


def _modulation(function: str) -> tuple[Callable[[], Any], int]:
    """A forward and backward, and the bytes that it has to move."""
    masked = samples.logits(3, 64, 309, dtype=torch.float32, device="cpu").requires_grad_()
    target, grad = torch.arange(64), masked[-1].detach().clone()
    state = agm.ModulationState(2)

    def call() -> tuple[Tensor, ...]:
        if function == "fused_modulate":
            return torch.autograd.grad(agm.fused_modulate(masked, target, state), masked, grad)
        return torch.autograd.grad(agm.fused_modulate_cross_entropy(masked, target, state)[0], masked)

    return call, (3 + 1 + 3) * 64 * 309 * 4


@pytest.mark.parametrize("function", ["fused_modulate", "fused_modulate_cross_entropy"])
def test_operations_and_bytes(function: str) -> None:
    call, least = _modulation(function)
    call()
    with Dispatched() as counted:
        call()
    bound = load()["operations"][function]
    own = [name for name in counted.names if name.startswith("agm.")]
    assert {name.split(".")[1] for name in own} <= set(_library.OPS)
    assert len(own) == bound["own"]
    assert len(counted.names) <= bound["all"], counted.names
    assert 0.99 < counted.bytes / least <= load()["bytes"][function]


def test_what_views_move_is_not_counted() -> None:
    x = torch.ones(4, 8)
    with Dispatched() as counted:
        x.t().add(1)
    assert counted.names == ["aten.add.Tensor"]
    assert counted.bytes == 2 * x.nbytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("variant", ["exact", "shared"])
def test_launches_and_synchronisations(variant: str) -> None:
    made = training("tiny", "late", 2, variant, "sequential", device=torch.device("cuda"))
    found = step.notes(made)
    assert found[variant]["synchronisations"] <= load()["synchronisations"]["step"]
    assert found["sequential"]["synchronisations"] > BATCH  # or they are not counted
    masked = samples.logits(3, BATCH, 10, dtype=torch.float32, device="cuda").requires_grad_()
    target, grad = torch.zeros(BATCH, dtype=torch.int64, device="cuda"), masked[-1].detach().clone()
    state = agm.ModulationState(2, "cuda")
    forward = samples.kernels_of(lambda: agm.fused_modulate(masked, target, state))
    logits = agm.fused_modulate(masked, target, state)
    backward = samples.kernels_of(lambda: torch.autograd.grad(logits, masked, grad, retain_graph=True))
    assert len(forward) <= load()["launches"]["forward"]
    assert len(backward) <= load()["launches"]["backward"]
