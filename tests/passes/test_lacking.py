"""Models in whose batches samples lack modalities, and models that draw subsets."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
import agm.models

MODALITIES = ("audio", "visual", "text")
PATHS = {name: f"nets.{name}" for name in MODALITIES}
B = 7


class Whole(nn.Module):
    def __init__(self, hidden: bool = True) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh()) for name in MODALITIES}
        )
        head = [nn.Linear(18, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)] if hidden else [nn.Linear(18, 3)]
        self.head = nn.Sequential(*head)

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features[name] for name in MODALITIES], 1))

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        given = {"audio": audio, "visual": visual, "text": text}
        return self.classify({name: net(given[name]) for name, net in self.nets.items()})


class Fusing(Whole):
    @property
    def encoders(self) -> nn.ModuleDict:
        return self.nets

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.classify(features)

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        given = {"audio": audio, "visual": visual, "text": text}
        return self.fuse({name: net(given[name]) for name, net in self.nets.items()})


KINDS: dict[str, tuple[type[Whole], dict[str, Any]]] = {
    "whole": (Whole, {}),
    "paths": (Whole, {"encoders": PATHS}),
    "fuse": (Fusing, {}),
    "chunks": (Fusing, {"max_rows": 5, "checkpoint": True}),
}


def made(kind: str, hidden: bool = True, **options: Any) -> agm.AGM:
    torch.manual_seed(0)
    network, own = KINDS[kind]
    return agm.AGM(network(hidden).double(), MODALITIES, alpha=1.0, **own, **options)


def batch(seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(B, 4, generator=generator, dtype=torch.float64) for name in MODALITIES}
    present = torch.rand(B, 3, generator=generator) < 0.6
    present[0], present[1] = True, torch.tensor([True, False, False])
    return inputs, present, torch.randint(3, (B,), generator=generator)


def garbage(inputs: Mapping[str, Tensor], present: Tensor, value: float) -> dict[str, Tensor]:
    """What is not there may be anything."""
    return {
        name: x.masked_fill(~here.unsqueeze(1), value)
        for (name, x), here in zip(inputs.items(), present.unbind(1), strict=True)
    }


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_separate_passes(kind: str, hidden: bool) -> None:
    model = made(kind, hidden)
    for seed in range(2):
        inputs, present, target = batch(seed)
        result = agm.verify(model, inputs, target, present=present)
        assert result.ok, result
        model(**inputs, target=target, present=present)
    assert model.modulator.state.skipped == 0


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_input_made_from_the_batch_is_one_for_lacking_samples_and_masked_ones(
    kind: str, hidden: bool
) -> None:
    model = made(kind, hidden, absent={"audio": lambda x: x.mean(0, keepdim=True)})
    inputs, present, target = batch()
    result = agm.verify(model, inputs, target, present=present)
    assert result.ok, result


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("kind", ["paths", "fuse"])
@pytest.mark.parametrize("hidden", [True, False])
def test_what_is_not_there_is_not_looked_at(kind: str, hidden: bool, masked: Any) -> None:
    """Garbage in the place of missing inputs changes no number, and their modality's response is 0 there."""
    inputs, present, target = batch()
    found = []
    for value in (0.0, torch.nan):
        model = made(kind, hidden, masked=masked)
        for _ in range(2):
            model.zero_grad()
            logits = model(**garbage(inputs, present, value), target=target, present=present)
            F.cross_entropy(logits, target).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([logits, *gradients, *model.module.buffers(), model.modulator.state.values])
    torch.testing.assert_close(found[0], found[1])
    model.eval()
    with torch.no_grad():
        plain = model.module(**garbage(inputs, present, 0.0))
        assert torch.equal(model(**garbage(inputs, present, torch.nan), present=present), plain)


@pytest.mark.parametrize("kind", ["paths", "fuse"])
def test_shared_features_of_missing_modalities_are_those_of_absent_ones(kind: str) -> None:
    """The joint pass's features of an absent input depend on the mode; a masked pass takes those in eval mode."""
    inputs, present, target = batch()
    network, options = KINDS[kind]
    torch.manual_seed(0)
    module = network().double()
    for _ in range(2):
        rows = agm.masked_logits(module, inputs, masked="shared", present=present, **options)
    weights = agm.subset_weights(3)
    restricted = rows.clone()
    for i, one in enumerate(present):
        own = sum(1 << m for m, here in enumerate(one.tolist()) if here)
        for subset in range(1, 8):
            if subset & own == own:
                restricted[subset - 1, i] = rows[-1, i]
            elif subset & own == 0:
                restricted[subset - 1, i] = 0
            else:
                torch.testing.assert_close(rows[subset - 1, i], rows[(subset & own) - 1, i])
    responses = torch.einsum("ms,sbc->mbc", weights, restricted)
    assert responses.transpose(0, 1)[~present].abs().max() < 1e-12
    assert target.shape == (B,)


def test_a_padding_mask_in_the_input_of_a_missing_modality() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
            kept = (~tokens["padding"]).unsqueeze(-1)
            return (self.linear(tokens["x"]) * kept).sum(1) / kept.sum(1).clamp(min=1)

    torch.manual_seed(0)
    network = agm.models.LateFusion({"a": Pooled(), "b": nn.Linear(3, 4)}, 3, num_features={"a": 4, "b": 4}).double()
    model = agm.AGM(network, alpha=1.0)
    tokens = {"x": torch.randn(B, 5, 3, dtype=torch.float64), "padding": torch.rand(B, 5) < 0.4}
    present = torch.rand(B, 2) < 0.6
    inputs = {"a": tokens, "b": torch.randn(B, 3, dtype=torch.float64)}
    result = agm.verify(model, inputs, torch.randint(3, (B,)), present=present)
    assert result.ok, result


@pytest.mark.parametrize(
    ("present", "error", "message"),
    [
        (torch.ones(B, 2, dtype=torch.bool), ValueError, r"shape \(7, 3\)"),
        (torch.ones(B, 3), TypeError, r"torch\.bool"),
        ({"audio": True}, TypeError, r"`present` to be a tensor, but got dict"),
    ],
)
def test_a_refused_batch_loses_nothing(present: Any, error: type[Exception], message: str) -> None:
    model = made("fuse")
    inputs, _, target = batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        model(**inputs, target=target, present=present)
    with pytest.raises(error, match=message):
        model.eval()(**inputs, present=present)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_present_is_a_name_of_the_library() -> None:
    class Taken(nn.Module):
        def forward(self, a: Tensor, b: Tensor, present: Tensor) -> Tensor:
            return a

    with pytest.raises(ValueError, match="no parameter `present`"):
        agm.AGM(Taken(), ("a", "b"))
    with pytest.raises(ValueError, match="'present'"):
        agm.Modulator(("a", "present"))


@pytest.mark.parametrize("subsets", [4, 5, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_subsets_are_those_of_separate_passes(kind: str, subsets: int) -> None:
    model = made(kind, subsets=subsets, seed=3)
    inputs, present, target = batch()
    for _ in range(3):
        result = agm.verify(model, inputs, target)
        assert result.ok, result
        model(**inputs, target=target)
    assert agm.verify(model, inputs, target, present=present).ok
    drawn = 6 if subsets == 6 else 4
    part = {"whole": "network", "paths": "rest of the network"}.get(kind, "fusion")
    assert model.plan().count(part, B) == (drawn + 1) * B
    assert ("drawn" in str(model.plan())) == (drawn == 4)


def test_draws_go_on_where_a_run_was_saved() -> None:
    inputs, _, target = batch()
    whole, first = made("fuse", subsets=4), made("fuse", subsets=4)
    seen = []
    for _ in range(4):
        seen.append(whole.sampler().subsets)  # type: ignore[misc]
        whole(**inputs, target=target)
    assert len(set(seen)) > 1
    for _ in range(2):
        first(**inputs, target=target)
    second = made("fuse", subsets=4)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second(**inputs, target=target)
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_failed_step_draws_the_same_again() -> None:
    model = made("fuse", subsets=4)
    inputs, _, target = batch()
    before = model.sampler().subsets  # type: ignore[misc]
    with pytest.raises(ValueError, match="class indices"):
        model(**inputs, target=target + 7)
    assert model.sampler().subsets == before  # type: ignore[misc]


def test_a_sum_needs_no_draws() -> None:
    exact, drawn = made("fuse", hidden=False), made("fuse", hidden=False, subsets=4)
    for seed in range(3):
        inputs, _, target = batch(seed)
        for model in (exact, drawn):
            model(**inputs, target=target)
        assert torch.equal(exact.modulator.state.values, drawn.modulator.state.values)
    result = agm.verify(drawn, inputs, target)
    assert result.ok, result
    assert len(result.logits) == 7


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"subsets": 3}, ValueError, "at least 4 for 3 modalities"),
        ({"subsets": True}, TypeError, "`subsets`"),
        ({"subsets": 4, "seed": -1}, ValueError, "`seed`"),
    ],
)
def test_bad_settings(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made("fuse", **options)
