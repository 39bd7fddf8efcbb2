"""Training steps of networks whose encoders take one pass, against those that take two."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm
from agm.models import (
    EarlyFusion,
    FiLMFusion,
    GatedFusion,
    LateFusion,
    ResNet18,
    TransformerEncoder,
)

from .choosing import (
    BATCH,
    CLASSES,
    FEATURES,
    JOINED,
    SHARED,
    SPLIT,
    TWO,
    WIDTHS,
    Seen,
    assert_one_is_two,
    cnns,
    dropping,
    encoded,
    images,
    mlps,
    normed,
    plain,
    rows,
    seen,
    target,
    train,
    vectors,
)


@pytest.mark.parametrize("fusion", [LateFusion, EarlyFusion, GatedFusion, FiLMFusion])
@pytest.mark.parametrize(("encoders", "inputs"), [(mlps, vectors), (cnns, images)])
def test_training_steps(fusion: Any, encoders: Any, inputs: Any) -> None:
    options = {"hidden": (12, 6)} if fusion is EarlyFusion else {}
    network = fusion(encoders(), CLASSES, num_features=FEATURES, **options)
    assert_one_is_two(copy.deepcopy(network), inputs)
    assert_one_is_two(network, inputs, JOINED, apart=SHARED, masked="shared")


@pytest.mark.parametrize("checkpoint", [False, True])
def test_training_steps_with_a_fusion_in_chunks(checkpoint: bool) -> None:
    network = EarlyFusion(mlps(), CLASSES, num_features=FEATURES, hidden=(12, 6))
    assert_one_is_two(network, vectors, max_rows=3, checkpoint=checkpoint)


@pytest.mark.parametrize(("masked", "one", "two"), [("exact", SPLIT, TWO), ("shared", JOINED, SHARED)])
def test_training_steps_of_transformers(masked: Any, one: tuple[str, ...], two: tuple[str, ...]) -> None:
    encoders = {
        name: TransformerEncoder(width, width=8, num_heads=2, dropout=0.3, max_length=7, pool="cls")
        for name, width in WIDTHS.items()
    }

    def inputs(step: int) -> dict[str, Any]:
        padding = torch.arange(7) >= torch.tensor([7, 3, 5, 2, 6]).unsqueeze(1)
        return {
            "audio": {"x": rows(BATCH, 7, 4, seed=step), "padding_mask": padding},
            "visual": rows(BATCH, 5, 6, seed=step + 10),
        }

    assert_one_is_two(LateFusion(encoders, CLASSES), inputs, one, apart=two, of_each=True, masked=masked)


def test_training_steps_of_resnets() -> None:
    network = LateFusion({"audio": ResNet18(1), "visual": ResNet18(3)}, CLASSES)
    lr = 1e-4  # with more its gradients explode, and their rounding with them
    assert_one_is_two(copy.deepcopy(network), images, lr=lr)
    assert_one_is_two(network, images, JOINED, lr, SHARED, masked="shared")


def test_modalities_in_another_order_than_the_networks() -> None:
    network = LateFusion(mlps(), CLASSES, num_features=FEATURES)
    assert_one_is_two(network, vectors, modalities=("visual", "audio"))


def test_frozen_and_cumulative_norms() -> None:
    network = LateFusion(
        {n: nn.Sequential(nn.Linear(w, 8), nn.BatchNorm1d(8, momentum=None)) for n, w in WIDTHS.items()},
        CLASSES,
        num_features=FEATURES,
    )
    for _ in range(2):
        assert_one_is_two(copy.deepcopy(network), vectors)
        assert_one_is_two(copy.deepcopy(network), vectors, JOINED, apart=SHARED, masked="shared")
        network.encoders["audio"].append(nn.Dropout(0.1))
        network.encoders["audio"][1].eval()


class Masked(nn.Module):
    """Its absent input keeps the padding mask of its sample, so that it has B absent rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.linear(given["x"]).masked_fill(given["padding"].unsqueeze(-1), 0.0)
        return {"pooled": self.norm(hidden.mean(1)), "length": (~given["padding"]).sum(1, keepdim=True)}


class Trees(LateFusion):
    def fused_features(self, features: Any) -> Tensor:
        audio = features["audio"]["pooled"] / features["audio"]["length"]
        return super().fused_features({"audio": audio, "visual": features["visual"]})


def test_pytrees_with_absent_rows_of_their_own() -> None:
    network = Trees({"audio": Masked(), "visual": mlps()["visual"]}, CLASSES, num_features=FEATURES)

    def inputs(step: int) -> dict[str, Any]:
        padding = torch.arange(7) >= torch.tensor([7, 3, 5, 2, 6]).unsqueeze(1)
        return {"audio": {"x": rows(BATCH, 7, 4, seed=step), "padding": padding}, "visual": vectors(step)["visual"]}

    assert_one_is_two(copy.deepcopy(network), inputs, of_each=True)
    assert_one_is_two(network, inputs, JOINED, apart=SHARED, of_each=True, masked="shared")


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_gradients_of_inputs_and_of_a_learnt_absent_row(masked: Any) -> None:
    network = LateFusion(mlps(), CLASSES, num_features=FEATURES).double()
    found = []
    for passes in ("one", "two"):
        absent = nn.Parameter(rows(4, seed=20))
        inputs = {name: x.requires_grad_() for name, x in vectors(0).items()}
        torch.manual_seed(0)
        options: dict[str, Any] = {"absent": {"audio": absent}, "passes": passes, "masked": masked}
        logits = agm.masked_logits(copy.deepcopy(network), inputs, **options)
        logits.backward(rows(*logits.shape, seed=30))
        found.append([logits.detach(), absent.grad, *(x.grad for x in inputs.values())])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_two_forwards_before_one_backward(masked: Any) -> None:
    network = LateFusion(mlps(), CLASSES, num_features=FEATURES).double()
    found = []
    for together in (False, True):
        model = agm.AGM(copy.deepcopy(network), alpha=2.0, passes="one", masked=masked)
        torch.manual_seed(0)
        losses = []
        for step in range(3):
            losses.append(model(**vectors(step), target=target()).square().sum())
            if not together:
                losses[-1].backward()
        if together:
            sum(losses).backward()  # type: ignore[union-attr]
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("make", "passes", "exact", "shared"),
    [
        (normed, "one", [2 * BATCH + 1], [BATCH + 1]),
        (normed, "two", [BATCH, BATCH + 1], [BATCH, 1]),
        (normed, "auto", [2 * BATCH + 1], [BATCH + 1]),
        (dropping, "one", [2 * BATCH + 1], [BATCH + 1]),
        (dropping, "two", [BATCH, BATCH + 1], [BATCH, 1]),
        (dropping, "auto", [2 * BATCH + 1], [BATCH + 1]),
        (plain, "one", [BATCH + 1], [BATCH + 1]),
        (plain, "two", [BATCH, BATCH + 1], [BATCH, 1]),
        (plain, "auto", [BATCH + 1], [BATCH + 1]),
    ],
)
@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_rows_that_an_encoder_sees(
    make: Callable[[int], nn.Module], passes: Any, exact: list[int], shared: list[int], masked: Any
) -> None:
    encoders = {name: Seen(make(width)) for name, width in WIDTHS.items()}
    network = LateFusion(encoders, CLASSES, num_features=FEATURES).double()
    model = agm.AGM(network, passes=passes, masked=masked)
    expected = exact if masked == "exact" else shared
    counts = seen(lambda: model(**vectors(0), target=target()), list(encoders.values()))
    assert counts == [expected, expected]


def test_features_are_shared_where_nothing_depends_on_the_mode() -> None:
    def network() -> nn.Module:
        return LateFusion({name: plain(width) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES)

    assert_one_is_two(network(), vectors, expected=JOINED)
    paths = {name: f"encoders.{name}" for name in WIDTHS}
    models = [agm.AGM(network().double(), encoders=paths, passes=passes) for passes in ("one", "two")]
    models[1].load_state_dict(models[0].state_dict())
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    assert encoded(models[0]) == [JOINED, JOINED]
