"""Networks that compute something of the whole batch in eval mode, in functions that no layer announces."""

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import agm

from .meeting_networks import MET, NAMES, OPTIONS, PASSES, TARGET, Offering, Pairs, batch


class Experts(Pairs):
    """Of which each takes a quarter of a batch at most; the others are dropped."""

    def mixed(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] > 0).long()
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            own = (chosen == index).nonzero().flatten()[: len(x) // 4]
            output = output.index_add(0, own, expert(x[own]))
        return x + output


class Attending(Pairs):
    def mixed(self, x: Tensor) -> Tensor:
        return x + torch.softmax(x @ x.T, -1) @ x


class Normalising(Pairs):
    def mixed(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


class Scaled(Pairs):
    def mixed(self, x: Tensor) -> Tensor:
        return x / (x.std() + 1)


class Longest(Pairs):
    """Samples are as long as the longest of a batch."""

    def mixed(self, x: Tensor) -> Tensor:
        lengths = (x > 0.5).sum(1)
        kept = torch.arange(16) < 2 * lengths.max()
        return x * kept


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [Experts, Attending, Normalising, Scaled, Longest])
def test_each_subset_is_a_batch_of_its_own(kind: type[Pairs], options: dict[str, Any]) -> None:
    model = agm.AGM(kind(), NAMES, alpha=2.0, **options)
    result = agm.verify(model, batch(), TARGET)
    assert result.ok, str(result)
    model._passes.record.looks = 0  # at absent rows that amplify
    model(**batch(), target=TARGET)
    assert MET in str(model.plan())
    PASSES.clear()
    model(**batch(), target=TARGET)
    assert PASSES == [6, 6, 6]


class Guarded(Pairs):
    """Divides by the largest number of a batch, where that is large."""

    def mixed(self, x: Tensor) -> Tensor:
        largest = x.abs().max()
        return x / largest if largest > 5 else x


class Later(Pairs):
    """Centres a batch from the third one on."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def mixed(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return x - x.mean(0) if self.steps > 2 else x


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [Guarded, Later])
def test_another_way_through_the_network_is_looked_at(kind: type[Pairs], options: dict[str, Any]) -> None:
    """What a first batch has shown is no evidence for what does not run in it."""
    network = kind()
    model = agm.AGM(network, NAMES, alpha=2.0, **options)
    plain = agm.AGM(kind(), NAMES, alpha=2.0, max_rows=6)  # a pass a subset
    plain._passes.record.rows_meet = "so that each subset has a pass"
    for scale in (1.0, 1.0, 12.0, 1.0):
        for one in (model, plain):
            one.zero_grad()
            F.cross_entropy(one(**batch(scale), target=TARGET), TARGET).backward()
        own, expected = ([p.grad for p in one.module.head.parameters()] for one in (model, plain))
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(model.modulator.state.coefficients, plain.modulator.state.coefficients)
    assert MET in str(model.plan())


class Capped(Pairs):
    """Divides by the largest number of a batch, where that is large: by the same functions."""

    def mixed(self, x: Tensor) -> Tensor:
        return x / x.abs().max().clamp(min=5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_functions_are_looked_at_again(options: dict[str, Any]) -> None:
    model = agm.AGM(Capped(), NAMES, **options)
    model._passes.record.looks = 0  # at absent rows that amplify
    counts = []
    warns = pytest.warns(UserWarning, match="In step 20 rows of several subsets have met")
    for step in range(1, 26):
        PASSES.clear()
        with warns if step == 20 else nullcontext():
            model(**batch(1.0 if step < 15 else 30.0), target=TARGET)
        assert (MET in str(model.plan())) == (step >= 20)
        counts.append(sum(PASSES))
    rows = counts[4]
    assert [step for step, count in enumerate(counts, 1) if count > rows] == [1, 10, 20]
    result = agm.verify(model, batch(30.0), TARGET)
    assert result.ok, str(result)


class Looping(Pairs):
    """More rounds in some steps than in others."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def mixed(self, x: Tensor) -> Tensor:
        self.steps += self.training
        for _ in range(2 + self.steps % 3):
            x = torch.tanh(x) + x
        return x


class Logging(Pairs):
    """Keeps the mean of a batch, of which nothing comes."""

    def mixed(self, x: Tensor) -> Tensor:
        self.mean = x.mean()
        return x


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [Pairs, Looping, Logging])
def test_rows_that_do_not_meet_stay_together(kind: type[Pairs], options: dict[str, Any]) -> None:
    model = agm.AGM(kind(), NAMES, **options)
    for scale in (1.0, 2.0):
        model(**batch(scale), target=TARGET)
        assert MET not in str(model.plan())
    counts = []
    for scale in (1.0, 2.0, 3.0, 3.0):
        PASSES.clear()
        model._passes.record.looks = 0
        model(**batch(scale), target=TARGET)
        counts.append(sum(PASSES))
    assert counts == [6 + 12] * 4


def test_fewer_rows_than_a_batch_are_not_exceeded() -> None:
    model = agm.AGM(Attending(), NAMES, max_rows=4)
    PASSES.clear()
    with pytest.warns(UserWarning, match="with max_rows=4 fewer go through at a time than the 6 samples"):
        model(**batch(), target=TARGET)
    assert max(PASSES[1:]) <= 4
    assert not agm.verify(model, batch(), TARGET).ok


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("kind", [Experts, Attending, Normalising, Scaled, Longest, Guarded])
def test_fusions_of_networks_that_offer_them(kind: type[Pairs], masked: Any) -> None:
    model = agm.AGM(Offering(kind), NAMES, alpha=2.0, masked=masked)
    for scale in (1.0, 12.0, 1.0) if kind is Guarded else (1.0,):
        model(**batch(scale), target=TARGET)
        result = agm.verify(model, batch(scale), TARGET)
        assert result.ok, str(result)
    assert MET in str(model.plan())


def test_a_call_of_the_function_looks_once() -> None:
    network = Pairs()
    counts = []
    for _ in range(3):
        PASSES.clear()
        agm.masked_logits(network, batch())
        counts.append(len(PASSES))
    assert counts[0] > 2
    assert counts[1:] == [2, 2]


def test_inputs_that_forward_writes_to() -> None:
    class Writing(Guarded):
        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            return super().forward(audio.mul_(2), visual)

    model = agm.AGM(Writing(), NAMES, alpha=2.0)
    for scale in (0.5, 6.0):
        model(**batch(scale), target=TARGET)
        result = agm.verify(model, batch(scale), TARGET)
        assert result.ok, str(result)


class Rounding(Pairs):
    """Computes in bfloat16, in which other numbers of rows may be rounded otherwise."""

    noise = 1e-2

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = super().forward(audio, visual).float()
        return logits * (1 + self.noise) if len(audio) > 6 else logits

    half = True


@pytest.mark.parametrize("half", [False, True])
def test_rounding_of_a_half_type_is_no_meeting(half: bool) -> None:
    network = Rounding().float()
    network.half = half
    model = agm.AGM(network, NAMES)
    model(**{name: x.float() for name, x in batch().items()}, target=TARGET)
    assert (MET in str(model.plan())) == (not half)


class Large(Pairs):
    """For which there is no memory beside all masked rows."""

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        if not self.training and len(audio) < 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return super().forward(audio, visual)


@pytest.mark.parametrize("options", OPTIONS[:6], ids=str)
def test_no_memory_for_a_look_ends_no_step(options: dict[str, Any]) -> None:
    model, plain = agm.AGM(Large(), NAMES, **options), agm.AGM(Pairs(), NAMES, **options)
    model._passes.record.looks = 0  # at absent rows that amplify
    with pytest.warns(UserWarning, match=r"no memory to look whether rows .*Tried to allocate"):
        logits = model(**batch(), target=TARGET)
    torch.testing.assert_close(logits, plain(**batch(), target=TARGET))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch(), target=TARGET)


class Similar(Pairs):
    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.audio_net(audio) @ self.visual_net(visual).T


@pytest.mark.parametrize("options", [*(one for one in OPTIONS if "max_rows" not in one), {"max_rows": 6}], ids=str)
def test_similarities_of_samples_are_those_of_each_subset(options: dict[str, Any]) -> None:
    model = agm.AGM(Similar(), NAMES, alpha=2.0, **options)
    for _ in range(2):
        model(**batch(), target=torch.arange(6))
        result = agm.verify(model, batch(), torch.arange(6))
        assert result.ok, str(result)


def test_similarities_of_samples_are_refused_where_batches_are_cut() -> None:
    model = agm.AGM(Similar(), NAMES, max_rows=5)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(5, 5\).*set `max_rows` to the size of your batches"):
        model(**batch(), target=torch.arange(6))


def test_similarities_of_samples_are_refused_where_nobody_can_look() -> None:
    unseen = {name: x.to("meta") for name, x in batch().items()}
    with pytest.raises(ValueError, match=r"each pair of samples.*fused_modulate"):
        agm.masked_logits(Similar().to("meta"), unseen)
