"""A state that was saved under another order of the modalities is loaded by their names, or refused."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm import models
from agm.modulation import order
from agm.strategies import AGM as Strategy
from agm.strategies import MSLR, SmoothedModulator

ENCODERS = {"audio": "ear", "visual": "eye", "text": "tongue"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ear, self.eye, self.tongue = nn.Linear(5, 4), nn.Linear(6, 4), nn.Linear(7, 4)
        self.head = nn.Linear(12, 3)

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        return self.head(torch.cat([self.ear(audio), self.eye(visual), self.tongue(text)], 1).relu())


def batch(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(8, size, generator=draw) for name, size in zip(ENCODERS, (5, 6, 7), strict=True)}
    return inputs, torch.randint(3, (8,), generator=draw)


def step(model: nn.Module, seed: int) -> None:
    inputs, target = batch(seed)
    F.cross_entropy(model(**inputs, target=target), target).backward()


def trained(modalities: tuple[str, ...] = tuple(ENCODERS)) -> agm.AGM:
    torch.manual_seed(0)
    model = agm.AGM(Net(), modalities, alpha=2.0, encoders=ENCODERS)
    for seed in range(3):
        step(model, seed)
    return model


def scores(model: agm.AGM) -> dict[str, float]:
    return {name: row["running_score"] for name, row in model.modulator.report().items()}


def test_values_follow_their_names() -> None:
    model, names = trained(), ("text", "audio", "visual")
    other = agm.AGM(Net(), names, alpha=2.0, encoders=ENCODERS)
    state = model.state_dict()
    other.load_state_dict(state)
    assert scores(other) == scores(model)
    assert len(set(scores(model).values())) == 3
    assert state["modulator.state.running_scores"].tolist() == list(scores(model).values())  # as it was
    for one in (model, other):
        one.zero_grad()
        step(one, 9)
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(other.module.get_parameter(name).grad, parameter.grad)
    other.load_state_dict(other.state_dict())
    assert scores(other) == pytest.approx(scores(model))


def test_a_checkpoint_of_versions_without_names_goes_by_place() -> None:
    model = trained()
    state = model.state_dict()
    del state["modulator.modalities"]
    other = agm.AGM(Net(), tuple(ENCODERS), alpha=2.0, encoders=ENCODERS)
    other.load_state_dict(state)
    assert scores(other) == scores(model)


def test_other_modalities_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"modalities \('a', 'b', 'c'\), but modalities holds \('audio', "):
        agm.Modulator(("a", "b", "c")).load_state_dict(trained().modulator.state_dict())
    with pytest.raises(RuntimeError, match=r"modulator.modalities holds"):
        agm.AGM(nn.Bilinear(2, 2, 2), ("a", "b")).load_state_dict(trained().state_dict(), strict=False)


def test_names_outlive_averages_casts_and_files(tmp_path: Path) -> None:
    names = ("cam.left", "mode d'été", "声")
    modulator = agm.Modulator(names)
    modulator.state.running_scores.copy_(torch.tensor([1.0, 2.0, 3.0]))
    state = modulator.state_dict()
    averaged: OrderedDict[str, Tensor] = OrderedDict(state)
    for _ in range(100):
        averaged[order.KEY] = 0.999 * averaged[order.KEY] + 0.001 * state[order.KEY]
    averaged[order.KEY] = averaged[order.KEY].bfloat16()
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(averaged, tmp_path / "state.safetensors")
    other = agm.Modulator(names[::-1])
    other.load_state_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    assert other.state.running_scores.tolist() == [3.0, 2.0, 1.0]
    state[order.KEY] = state[order.KEY][:-3]
    with pytest.raises(RuntimeError, match="no names that can be read"):
        other.load_state_dict(state)


def test_smoothed_coefficients_follow_too() -> None:
    modulator = SmoothedModulator(("a", "b"), smoothing=0.5)
    modulator.smoothed.copy_(torch.tensor([0.5, 2.0]))
    other = SmoothedModulator(("b", "a"), smoothing=0.5)
    other.load_state_dict(modulator.state_dict())
    assert other.smoothed.tolist() == [2.0, 0.5]


def test_strategies() -> None:
    first = Strategy(Net(), encoders=ENCODERS)
    first.module.modulator.state.running_scores.copy_(torch.tensor([1.0, 2.0, 3.0]))
    names = ("visual", "text", "audio")
    other = Strategy(Net(), encoders=ENCODERS, modalities=names)
    other.load_state_dict(first.state_dict())
    assert other.module.modulator.state.running_scores.tolist() == [2.0, 3.0, 1.0]

    by_place = MSLR(Net(), encoders=ENCODERS)
    by_place.coefficients.copy_(torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(RuntimeError, match=r"in this order, but modalities holds \('audio', 'visual', 'text'\)"):
        MSLR(Net(), encoders=ENCODERS, modalities=names).load_state_dict(by_place.state_dict())
    old = by_place.state_dict()
    del old["modalities"]
    for state in (by_place.state_dict(), old):
        again = MSLR(Net(), encoders=ENCODERS)
        again.load_state_dict(state)
        assert again.coefficients.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("names", [{"audio", "visual", "text"}, frozenset(ENCODERS)])
def test_a_set_has_no_order(names: set[str]) -> None:
    for build in (agm.Modulator, agm.ContributionMeter, lambda m: agm.AGM(Net(), m)):
        with pytest.raises(TypeError, match="`modalities` to be in an order"):
            build(names)
    with pytest.raises(TypeError, match="`modalities` to be in an order"):
        MSLR(Net(), encoders=ENCODERS, modalities=names)  # type: ignore[arg-type]


def test_networks_whose_fusion_reads_another_order() -> None:
    def network(*names: str) -> models.FactorisedNetwork:
        return models.LateFusion({name: nn.Linear(5, 4) for name in names}, 3, num_features=dict.fromkeys(names, 4))

    first, same, other = network("a", "b"), network("a", "b"), network("b", "a")
    same.load_state_dict(first.state_dict())
    assert torch.equal(same.classifier.weight, first.classifier.weight)
    for load in (other.load_state_dict, lambda state: other.load_state_dict(state, strict=False)):
        with pytest.raises(RuntimeError, match=r"fusion of \('b', 'a'\), in this order.*holds \('a', 'b'\)"):
            load(first.state_dict())
    model = agm.AGM(first)
    with pytest.raises(RuntimeError, match=r"module\.modalities holds \('a', 'b'\)"):
        agm.AGM(other).load_state_dict(model.state_dict())
    turned = agm.AGM(network("a", "b"), ("b", "a"))  # the same fusion, whose scores are numbered otherwise
    model.modulator.state.running_scores.copy_(torch.tensor([1.0, 2.0]))
    turned.load_state_dict(model.state_dict())
    assert turned.modulator.state.running_scores.tolist() == [2.0, 1.0]
    old = {key: value for key, value in first.state_dict().items() if key != "modalities"}
    network("a", "b").load_state_dict(old)
