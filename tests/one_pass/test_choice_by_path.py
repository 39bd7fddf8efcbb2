"""The same of encoders that are named by path."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .choosing import (
    BATCH,
    JOINED,
    PATHS,
    SHARED,
    SPLIT,
    TWO,
    Pair,
    dropping,
    encoded,
    normed,
    plain,
    seen,
    target,
    train,
    vectors,
    why,
)


@pytest.mark.parametrize(
    ("make", "masked", "passes", "expected"),
    [
        (normed, "exact", "one", [2 * BATCH + 1]),
        (normed, "exact", "two", [BATCH, BATCH + 1]),
        (normed, "exact", "auto", [2 * BATCH + 1]),
        (dropping, "exact", "auto", [2 * BATCH + 1]),
        (plain, "exact", "one", [BATCH + 1]),
        (plain, "exact", "two", [BATCH, BATCH + 1]),
        (plain, "exact", "auto", [BATCH + 1]),
        (normed, "shared", "one", [BATCH + 1]),
        (normed, "shared", "auto", [BATCH + 1]),
        (dropping, "shared", "auto", [BATCH + 1]),
        (dropping, "shared", "two", [BATCH, 1]),
        (plain, "shared", "auto", [BATCH + 1]),
    ],
)
def test_rows_that_an_encoder_named_by_path_sees(
    make: Callable[[int], nn.Module], masked: Any, passes: Any, expected: list[int]
) -> None:
    network = Pair(make)
    model = agm.AGM(network, ("audio", "visual"), encoders=PATHS, masked=masked, passes=passes)
    counts = seen(lambda: model(**vectors(0), target=target()).sum(), [network.audio_net, network.visual_net])
    assert counts == [expected, expected]


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("make", [normed, dropping, plain])
def test_training_steps_with_encoders_named_by_path(make: Callable[[int], nn.Module], masked: Any) -> None:
    network = Pair(make)
    options: dict[str, Any] = {"modalities": ("audio", "visual"), "encoders": PATHS, "masked": masked}
    models = [agm.AGM(copy.deepcopy(network), passes=passes, **options) for passes in ("one", "two")]
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    one, two = (JOINED, SHARED) if masked == "shared" else (JOINED if make is plain else SPLIT, TWO)
    assert [encoded(model) for model in models] == [[one, one], [two, two]]
    found = agm.verify(models[0], vectors(0), target())
    assert found.ok, found


class Before(Pair):
    """What it does to the input of an encoder before that is given it: there an absent row is another one."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__(dropping)
        self.how = how

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return super().forward(self.how(audio), visual)


class LargeBatches:
    """Another way for the masked rows than for those of the joint pass."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 1.0 if len(x) > BATCH else x


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("how", [lambda x: x + 1.0, lambda x: x.add_(1.0), lambda x: x.detach()])
def test_an_encoder_named_by_path_that_is_given_something_else(how: Any, masked: Any) -> None:
    model = agm.AGM(Before(how), ("audio", "visual"), encoders=PATHS, masked=masked)
    for _ in range(2):
        found = agm.verify(model, vectors(0), target())
        assert found.ok, found
        model(**vectors(0), target=target())
    assert encoded(model) == ([SHARED, JOINED] if masked == "shared" else [TWO, SPLIT])
    assert "in its own way" in why(model, "audio")


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("how", [LargeBatches(), lambda x: (x.data.add_(1.0), x)[1]])
def test_an_encoder_named_by_path_whose_rows_are_others_in_the_masked_pass(how: Any, masked: Any) -> None:
    """In the joint pass it is given the inputs as they are, as far as one can see."""
    network = Before(how)
    options: dict[str, Any] = {"modalities": ("audio", "visual"), "encoders": PATHS, "masked": masked}
    models = [agm.AGM(copy.deepcopy(network), passes=passes, **options) for passes in ("auto", "two")]
    auto, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(auto, two, rtol=1e-11, atol=1e-11)
    if isinstance(how, LargeBatches):  # by the definition each subset is a batch of its own
        assert "one subset at a time" in str(models[0].plan())
        return
    assert encoded(models[0]) == ([SHARED, JOINED] if masked == "shared" else [TWO, SPLIT])
    assert "it is given other rows" in why(models[0], "audio")


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_rows_are_compared_where_an_encoder_takes_one_pass_only_later(masked: Any) -> None:
    """The network has been looked at before, with two."""
    network = Before(LargeBatches())
    options: dict[str, Any] = {"modalities": ("audio", "visual"), "encoders": PATHS, "masked": masked}
    train(agm.AGM(network, passes="two", **options), vectors)
    models = [agm.AGM(network, passes=passes, **options) for passes in ("auto", "two")]
    state = copy.deepcopy(network.state_dict())
    found = []
    for model in models:
        network.load_state_dict(state)
        torch.manual_seed(7)
        found.append([model(**vectors(step), target=target()) for step in range(2)][-1])
        network.zero_grad()
        found[-1].square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(found[1], found[3], rtol=1e-11, atol=1e-11)
