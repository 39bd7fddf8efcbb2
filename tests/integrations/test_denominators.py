"""What figures are shares of: the samples, or tokens, that have a modality; and NaN where there is nothing to share."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm


class Add(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, speech: Tensor, lips: Tensor) -> Tensor:
        return self.scale * speech + lips


def told(modulator: agm.Modulator) -> dict[str, list[float]]:
    """The accuracy of speech and of lips, by who tells it."""
    found = {"report": [row["accuracy"] for row in modulator.report().values()]}
    torchmetrics = pytest.importorskip("agm.integrations.torchmetrics", exc_type=ImportError)
    metrics = torchmetrics.ModalityMetrics(modulator.modalities)
    metrics.update(modulator)
    found["metrics"] = [float(metrics.compute()[f"{name}/accuracy"]) for name in modulator.modalities]
    return found


def batch(*length: int, having: int = 5) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Speech is right about all samples that have it, the first `having` of 20; lips guess."""
    torch.manual_seed(0)
    target = torch.arange(20 * math.prod(length)).view(20, *length) % 5
    inputs = {"speech": 9.0 * F.one_hot(target, 5).float(), "lips": 0.01 * torch.randn(20, *length, 5)}
    return inputs, target, torch.stack([torch.arange(20) < having, torch.ones(20, dtype=torch.bool)], 1)


@pytest.mark.parametrize("length", [(), (3,), (2, 3)])
@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_accuracies_where_few_samples_have_a_modality(length: tuple[int, ...], masked: str) -> None:
    inputs, target, present = batch(*length)
    target[::4] = -100
    model = agm.AGM(Add(), ("speech", "lips"), masked=masked)
    model(**inputs, target=target, present=present)
    right = (inputs["lips"].argmax(-1) == target).sum() / (target != -100).sum()
    for speech, lips in told(model.modulator).values():
        assert speech == 1
        # Where speech is there too, the response of lips is still that of lips, up to what all zeros are worth.
        assert lips == pytest.approx(float(right))
    assert model.modulator.state.mono_samples.tolist() == [
        int((target[:5] != -100).sum()),
        int((target != -100).sum()),
    ]
    model(**inputs, target=target)  # all have all: kernels count
    assert model.modulator.state.mono_samples.tolist() == [int((target != -100).sum())] * 2
    assert all(speech == 1 for speech, _ in told(model.modulator).values())


def test_a_modality_that_no_sample_has_has_no_accuracy() -> None:
    inputs, target, present = batch(having=0)
    model = agm.AGM(Add(), ("speech", "lips"))
    model(**inputs, target=target, present=present)
    assert all(math.isnan(speech) and not math.isnan(lips) for speech, lips in told(model.modulator).values())


@pytest.mark.parametrize("score", ["squared_error", "absolute_error"])
def test_errors_have_no_accuracy(score: str) -> None:
    model = agm.AGM(Add(), ("speech", "lips"), score=score)
    model(speech=torch.randn(6, 5), lips=torch.randn(6, 5), target=torch.randn(6, 5))
    assert all(math.isnan(accuracy) for both in told(model.modulator).values() for accuracy in both)


def test_means_over_the_steps_in_which_a_modality_was_seen() -> None:
    metrics_of = pytest.importorskip("agm.integrations.torchmetrics", exc_type=ImportError).ModalityMetrics
    model, metrics, scores = agm.AGM(Add(), ("speech", "lips")), metrics_of(("speech", "lips")), []
    for having in (5, 0, 20, 3):
        inputs, target, present = batch(having=having)
        model(**inputs, target=target, present=present)
        metrics.update(model.modulator)
        scores.append(model.modulator.report()["speech"]["score"])
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["speech/score"] == pytest.approx((scores[0] + scores[2] + scores[3]) / 3)
    assert found["speech/accuracy"] == 1
    assert found["joint/accuracy"] == pytest.approx(
        sum(float((inputs["lips"].argmax(-1) == target)[having:].sum()) + having for having in (5, 0, 20, 3)) / 80
    )


def test_a_state_that_is_loaded_forgets_who_had_what(tmp_path: Path) -> None:
    inputs, target, present = batch()
    model = agm.AGM(Add(), ("speech", "lips"))
    model(**inputs, target=target, present=present)
    model.modulator.state.step.add_(3)  # as another checkpoint would have it
    assert model.modulator.state.mono_samples.tolist() == [20, 20]


def _defined(right: Tensor, present: Tensor, nothing: float) -> tuple[list[float], list[float], float]:
    """Shapley values of the accuracy, accuracies of one modality, and cooperation; `right` is (8, B) by bitmask."""
    count, samples = present.shape[1], len(present)
    own = [sum(1 << m for m in range(count) if row[m]) for row in present.tolist()]

    def worth(subset: int) -> float:
        of = [float(right[subset & mask, i]) if subset & mask else nothing for i, mask in enumerate(own)]
        return sum(of) / samples

    shares = [0.0] * count
    for order in itertools.permutations(range(count)):
        before = 0
        for m in order:
            shares[m] += (worth(before | 1 << m) - worth(before)) / math.factorial(count)
            before |= 1 << m
    alone = [float(right[1 << m][present[:, m]].double().mean()) for m in range(count)]
    return shares, alone, worth(7) - nothing - sum(worth(1 << m) - nothing for m in range(count))


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.parts = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.head(torch.tanh(sum(part(x) for part, x in zip(self.parts, (a, b, c), strict=True))).pow(2))


@pytest.mark.parametrize("way", ["argument", "batches"])
def test_contributions_where_samples_lack_modalities(way: str) -> None:
    torch.manual_seed(3)
    network, names = Three().eval(), ("a", "b", "c")
    inputs, target = {name: torch.randn(40, 4) for name in names}, torch.randint(3, (40,))
    present = torch.rand(40, 3) < 0.6
    right = torch.zeros(8, 40, dtype=torch.bool)
    for subset in range(1, 8):
        given = {name: x * bool(subset >> m & 1) * present[:, m : m + 1] for m, (name, x) in enumerate(inputs.items())}
        right[subset] = network(**given).argmax(1) == target
    parts = [slice(0, 16), slice(16, 40)]
    batches = [({name: x[rows] for name, x in inputs.items()}, target[rows]) for rows in parts]
    if way == "argument":
        found = agm.contributions(network, batches, names, present=present, empty=0.25)
    else:
        three = [(*pair, present[rows]) for pair, rows in zip(batches, parts, strict=True)]
        found = agm.contributions(network, three, names, empty=0.25)
    shares, alone, cooperation = _defined(right, present, 0.25)
    assert [found.contributions[name] for name in names] == pytest.approx(shares)
    assert [found.alone[name] for name in names] == pytest.approx(alone)
    assert found.cooperation == pytest.approx(cooperation)
    assert sum(found.contributions.values()) == pytest.approx(found.accuracy - found.empty)
    values = found.sample_values
    assert values is not None
    assert torch.equal(values.isnan(), ~present)
    own = present.sum(1) * right[7]
    torch.testing.assert_close(values.nansum(1), own.double())
    assert list(found.values.values()) == pytest.approx(values.nanmean(0).tolist())
    masked = agm.masked_logits(network, inputs, present=present)
    torch.testing.assert_close(agm.modality_values(masked, target, present=present), values, equal_nan=True)


def test_presence_of_other_samples_is_refused() -> None:
    inputs, target, present = batch()
    given = [(inputs, target)]
    with pytest.raises(ValueError, match="`present` to have a row for each of the 20 samples"):
        agm.contributions(Add(), given, ("speech", "lips"), present=torch.cat([present, present]))
    with pytest.raises(ValueError, match="`present` to have shape"):
        agm.contributions(Add(), given, ("speech", "lips"), present=present[:9])
