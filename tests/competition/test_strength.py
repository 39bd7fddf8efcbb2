import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import agm
from agm.competition import (
    CUTOFF,
    StrengthStatistics,
    competition_strength,
    fit_ridge,
    measure_strength,
    strength_over_batches,
)


def direct(fit_features, fit_concepts, features, concepts, ridge=120.0, cutoff=CUTOFF):
    """The formula as it stands, with scikit-learn and numpy."""
    fit_features, fit_concepts, features, concepts = (
        values.double().numpy() for values in (fit_features, fit_concepts, features, concepts)
    )
    predicted = Ridge(alpha=ridge).fit(fit_features, fit_concepts).predict(features)
    residuals = predicted.reshape(concepts.shape) - concepts
    spread = len(concepts) * np.cov(concepts, rowvar=False).reshape(concepts.shape[1], -1)
    return np.trace(residuals @ np.linalg.pinv(spread, rcond=cutoff, hermitian=True) @ residuals.T) / concepts.shape[1]


@pytest.mark.parametrize("ridge", [0.0, 1.0, 120.0])
@pytest.mark.parametrize("outputs", [1, 5])
def test_against_the_formula(data, ridge, outputs):
    parts = data(outputs=outputs)
    expected = direct(*parts, ridge)
    assert 0.01 < expected < 1
    assert agm.competition.competition_strength(*parts, ridge=ridge) == pytest.approx(expected, rel=1e-8)
    assert agm.competition.competition_strength(*parts, ridge) == pytest.approx(expected, rel=1e-8)


def test_the_default_penalty_is_the_authors(data):
    assert competition_strength(*data()) == competition_strength(*data(), ridge=120.0)
    assert competition_strength(*data()) != competition_strength(*data(), ridge=100.0)


def test_a_large_mean_costs_no_digits(data):
    parts = [(values * 2**20).round() / 2**20 for values in data()]
    shifted = [values + 1e8 for values in parts]  # exact
    assert competition_strength(*shifted) == pytest.approx(competition_strength(*parts), rel=1e-7)


def test_single_precision_is_measured_in_double(data):
    parts = [values.float() for values in data()]
    assert competition_strength(*parts) == pytest.approx(direct(*parts), rel=1e-8)


def test_all_can_be_read_or_nothing(data):
    assert competition_strength(*data(noise=0.0), ridge=0.0) == pytest.approx(0, abs=1e-20)
    fit_features, fit_concepts, features, concepts = data()
    nothing = competition_strength(torch.zeros_like(fit_features), fit_concepts, torch.zeros_like(features), concepts)
    # The mean of other samples: (N - 1) / N, and a little for the distance of the means.
    shift = fit_concepts.mean(0) - concepts.mean(0)
    inverse = torch.linalg.inv(concepts.T.cov())
    assert nothing == pytest.approx(199 / 200 + float(shift @ inverse @ shift) / 5, rel=1e-8)


def test_any_invertible_combination_of_the_outputs_has_the_same_strength(data):
    fit_features, fit_concepts, features, concepts = data()
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 10
    mixed = competition_strength(fit_features, fit_concepts @ mixing, features, concepts @ mixing)
    assert mixed == pytest.approx(competition_strength(fit_features, fit_concepts, features, concepts), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_logits_that_sum_to_a_constant(data, dtype):
    """The direction that does not vary is left out, however float32 rounds it; p stays the number of outputs."""
    fit_features, fit_concepts, features, concepts = data()

    def closed(logits):
        return torch.cat([logits, 3 - logits.sum(1, keepdim=True)], 1)

    parts = [values.to(dtype) for values in (fit_features, closed(fit_concepts), features, closed(concepts))]
    strength = measure_strength(*parts)
    assert (strength.rank, strength.outputs) == (5, 6)
    # Five of the six outputs hold everything.
    expected = competition_strength(fit_features, fit_concepts, features, concepts) * 5 / 6
    assert strength.value == pytest.approx(expected, rel=1e-8 if dtype is torch.float64 else 1e-5)
    assert strength.value == pytest.approx(direct(*parts), rel=1e-8)


def test_the_cutoff_is_a_share_of_the_largest_variance(data):
    fit_features, fit_concepts, features, concepts = data()
    rotation = torch.linalg.svd(concepts - concepts.mean(0), full_matrices=False)[2].T
    scale = torch.tensor([1, 1, 1, 1, 1e-3], dtype=torch.float64)

    def narrowed(values):
        return values @ rotation / (concepts @ rotation).std(0) * scale

    parts = (fit_features, narrowed(fit_concepts), features, narrowed(concepts))
    assert measure_strength(*parts, cutoff=0.9e-6).rank == 5
    assert measure_strength(*parts, cutoff=1.1e-6).rank == 4
    assert competition_strength(*parts, cutoff=1.1e-6) == pytest.approx(direct(*parts, cutoff=1.1e-6), rel=1e-8)
    for cutoff in (-1e-3, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`cutoff`.*0 <= cutoff < 1"):
            competition_strength(*parts, cutoff=cutoff)


@pytest.mark.parametrize("size", [1, 7, 200])
def test_batches_make_no_difference(data, size):
    parts = data()
    expected = measure_strength(*parts, ridge="cv")
    fit = list(zip(parts[0].split(size), parts[1].split(size), strict=True))
    test = list(zip(parts[2].split(size), parts[3].split(size), strict=True))
    strength = strength_over_batches(iter(fit), test, ridge="cv")
    assert (strength.samples, strength.ridge) == (200, pytest.approx(expected.ridge, rel=1e-9))
    assert (strength.value, strength.low, strength.high) == pytest.approx(
        (expected.value, expected.low, expected.high), rel=1e-9
    )
    assert strength.value == pytest.approx(direct(*parts, strength.ridge), rel=1e-8)


def test_statistics_do_not_grow_with_the_samples(data):
    fit_features, fit_concepts, features, concepts = data()
    statistics = StrengthStatistics(fit_ridge([(fit_features, fit_concepts)], 120.0))

    def size():
        held = [statistics._residuals, statistics._concepts.scatter, statistics._concepts.mean]
        assert {type(value) for value in vars(statistics).values()} == {
            *(type(statistics._predictor), type(statistics._concepts), torch.Tensor, float)
        }
        return sum(values.numel() for values in held)

    statistics.update(features, concepts)
    first = size()
    for _ in range(3):
        statistics.update(features, concepts)
    assert size() == first == 5 * 5 * 2 + 5
    assert statistics.count == 800


def test_the_interval_is_that_of_a_plain_bootstrap(data):
    """Against resamples of the rows, each with its own covariance."""
    fit_features, fit_concepts, features, concepts = data(test=400, outputs=3)
    residuals = (fit_ridge([(fit_features, fit_concepts)], 120.0)(features) - concepts).numpy()
    random, values = np.random.default_rng(0), []
    for _ in range(2000):
        rows = random.integers(400, size=400)
        spread = 400 * np.cov(concepts.numpy()[rows], rowvar=False)
        values.append(np.trace(residuals[rows] @ np.linalg.inv(spread) @ residuals[rows].T) / 3)
    low, high = np.quantile(values, [0.05, 0.95])
    strength = measure_strength(fit_features, fit_concepts, features, concepts, resamples=4000, confidence=0.9)
    assert strength.low < strength.value < strength.high
    assert strength.high - strength.low == pytest.approx(high - low, rel=0.1)
    # The plain one is shifted by the bias of a covariance of fewer distinct rows, which is about p / N of the value.
    assert strength.low == pytest.approx(low, abs=0.15 * (high - low))
    assert strength.high == pytest.approx(high, abs=0.15 * (high - low))


def test_the_interval_covers_the_value_of_all_samples(data):
    """In 200 draws of 100 samples, 95 % intervals hold the value of a population: 0.95 +- 3 * 0.015."""
    fit_features, fit_concepts, features, concepts = data(test=20_000, outputs=2)
    truth = competition_strength(fit_features, fit_concepts, features, concepts)
    draws = [
        measure_strength(fit_features, fit_concepts, features[i : i + 100], concepts[i : i + 100], resamples=300)
        for i in range(0, 20_000, 100)
    ]
    covered = sum(draw.low <= truth <= draw.high for draw in draws) / len(draws)
    assert 0.88 <= covered <= 0.99


def test_seeds(data):
    first, again, other = (measure_strength(*data(), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (other.value, other.ridge) == (first.value, first.ridge)
    assert (other.low, other.high) != (first.low, first.high)
    state = torch.get_rng_state()
    measure_strength(*data(), ridge="cv")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_perfect_prediction_has_no_width(data):
    strength = measure_strength(*data(noise=0.0), ridge=0.0)
    assert 0 <= strength.low <= strength.value <= strength.high < 1e-20


def test_what_is_refused(data):
    fit_features, fit_concepts, features, concepts = data()
    constant = concepts.clone()
    constant[:, [1, 4]] = 0.1
    for parts, message in [
        ((fit_features, fit_concepts, features[:5], concepts[:5]), "more samples than outputs, but got 5 samples of 5"),
        ((fit_features, fit_concepts, features, constant), "to vary over the samples, but 2 of 5 are constant: 1, 4"),
        ((fit_features[:-1], fit_concepts, features, concepts), "`fit_features` and `fit_concepts`.*299 and 300"),
        ((fit_features, fit_concepts, features, concepts[1:]), "`features` and `concepts`.*200 and 199"),
        ((fit_features, fit_concepts, features[:, 1:], concepts), "`features` to have 12 columns.*got 11"),
        ((fit_features, fit_concepts, features, concepts[:, 1:]), "`concepts` to have 5 columns.*got 4"),
        ((fit_features * torch.inf, fit_concepts, features, concepts), "`fit_features` to be finite"),
        ((fit_features, fit_concepts, features * torch.nan, concepts), "`features` to be finite"),
        ((fit_features[:1], fit_concepts[:1], features, concepts), "two samples or more"),
        ((fit_features.numpy(), fit_concepts, features, concepts), "`fit_features` to be a floating tensor.*ndarray"),
    ]:
        with pytest.raises(ValueError, match=message):
            competition_strength(*parts)
    with pytest.raises(ValueError, match=r"`resamples`.*at least 2"):
        measure_strength(*data(), resamples=1)
    with pytest.raises(ValueError, match=r"`confidence`.*between 0 and 1, but got 95"):
        measure_strength(*data(), confidence=95)
    with pytest.raises(ValueError, match="`ridge`"):
        competition_strength(*data(), ridge=-1)
    with pytest.raises(ValueError, match=r"`test`.*read twice"):
        strength_over_batches([(fit_features, fit_concepts)], iter([(features, concepts)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_output_that_varies_by_rounding_alone_is_constant(data, dtype):
    fit_features, fit_concepts, features, concepts = (values.to(dtype) for values in data())
    concepts[:, 3] = 7.3
    concepts[::2, 3] *= 1 + torch.finfo(dtype).eps
    assert len(concepts[:, 3].unique()) == 2
    with pytest.raises(ValueError, match="constant: 3"):
        competition_strength(fit_features, fit_concepts, features, concepts)


def test_samples_that_change_between_the_two_passes_are_noticed(data):
    fit_features, fit_concepts, features, concepts = data()

    class Shrinking(list):
        def __iter__(self):
            yield from [self.pop()] if len(self) > 1 else super().__iter__()

    batches = Shrinking(zip(features.split([120, 80]), concepts.split([120, 80]), strict=True))
    with pytest.raises(ValueError, match="same samples twice, but got 80 and then 120"):
        strength_over_batches([(fit_features, fit_concepts)], batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(data):
    here = measure_strength(*data(), ridge="cv")
    there = measure_strength(*(values.cuda() for values in data()), ridge="cv")
    assert there.ridge == pytest.approx(here.ridge, rel=1e-9)
    assert (there.value, there.low, there.high) == pytest.approx((here.value, here.low, here.high), rel=1e-8)
