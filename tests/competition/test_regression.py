import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_predict

from agm.competition import RidgeStatistics, choose_ridge, fit_ridge
from agm.competition.regression import Folds


@pytest.mark.parametrize("ridge", [0.0, 1.0, 120.0, 1e6])
def test_against_scikit_learn(data, ridge):
    features, concepts, others, _ = data()
    ours = fit_ridge([(features, concepts)], ridge)
    theirs = Ridge(alpha=ridge).fit(features.numpy(), concepts.numpy())
    np.testing.assert_allclose(ours.weight.T, theirs.coef_, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(ours(others), theirs.predict(others.numpy()), rtol=1e-8, atol=1e-12)
    assert ours.ridge == ridge


@pytest.mark.parametrize("sizes", [[300], [1] * 300, [0, 7, 250, 0, 43]])
def test_batches_and_merged_workers_make_no_difference(data, sizes):
    features, concepts, _, _ = data()
    expected = Ridge(alpha=1.0).fit(features.numpy(), concepts.numpy())
    first, second = RidgeStatistics(), RidgeStatistics()
    for number, batch in enumerate(zip(features.split(sizes), concepts.split(sizes), strict=True)):
        (first, second)[number % 2].update(*batch)
    first.merge(second)
    first.merge(RidgeStatistics())
    assert first.count == 300
    np.testing.assert_allclose(first.solve(1.0).weight.T, expected.coef_, rtol=1e-8)


def test_a_large_mean_costs_no_digits(data):
    """As a sum of squares, 1e8**2 * 300, the scatter would have no digit left."""
    features, concepts, _, _ = data()
    expected = fit_ridge([(features, concepts)], 1.0).weight
    # Multiples of 2**-20 so that the shifted values are exact.
    rounded = (features * 2**20).round() / 2**20
    batches = list(zip((rounded + 1e8).split(64), (concepts - 1e6).split(64), strict=True))
    assert torch.allclose(fit_ridge(batches, 1.0).weight, expected, rtol=1e-5, atol=1e-6)
    exact = fit_ridge([(rounded, concepts)], 1.0).weight
    assert torch.allclose(fit_ridge(batches, 1.0).weight, exact, rtol=1e-7, atol=1e-8)


def test_narrow_features_are_accumulated_in_float64(data):
    features, concepts = (values.bfloat16() for values in data()[:2])
    expected = Ridge(alpha=1.0).fit(features.double().numpy(), concepts.double().numpy())
    np.testing.assert_allclose(fit_ridge([(features, concepts)], 1.0).weight.T, expected.coef_, rtol=1e-8)


def test_redundant_features_without_a_penalty_give_the_least_norm(data):
    features, concepts, _, _ = data()
    doubled = fit_ridge([(torch.cat([features, features], 1), concepts)], 0.0).weight
    single = fit_ridge([(features, concepts)], 0.0).weight
    assert torch.allclose(doubled, torch.cat([single, single]) / 2, rtol=1e-8)
    centred = features - features.mean(0)
    expected = np.linalg.pinv(centred.numpy()) @ (concepts - concepts.mean(0)).numpy()
    np.testing.assert_allclose(single, expected, rtol=1e-8)


def test_the_chosen_penalty_is_that_of_a_direct_cross_validation(data):
    """With one output the whitened error is the squared error; the folds are those of the stream."""
    features, concepts, _, _ = data(fit=40, width=30, outputs=1, noise=12.0)
    candidates = [0.1, 1.0, 10.0, 100.0, 1000.0]
    places = Folds(4, seed=3)._places(40).numpy()
    splits = [(np.flatnonzero(places != k), np.flatnonzero(places == k)) for k in range(4)]
    assert [len(test) for _, test in splits] == [10] * 4

    def error(ridge):
        guesses = cross_val_predict(Ridge(alpha=ridge), features.numpy(), concepts.numpy(), cv=splits)
        return np.square(guesses.reshape(-1, 1) - concepts.numpy()).sum()

    errors = [error(ridge) for ridge in candidates]
    best = candidates[int(np.argmin(errors))]
    assert best not in (candidates[0], candidates[-1])
    assert choose_ridge(features, concepts, candidates=candidates, folds=4, seed=3) == best
    statistics = Folds(4, seed=3)
    for start in range(0, 40, 7):
        statistics.update(features[start : start + 7], concepts[start : start + 7])
    assert [part.count for part in statistics.parts] == [10] * 4


def test_the_choice_follows_the_scale_of_the_features_and_of_no_output(data):
    features, concepts, _, _ = data(fit=60, width=40, noise=3.0)
    ridge = choose_ridge(features, concepts)
    assert choose_ridge(1000 * features, concepts) == pytest.approx(1e6 * ridge, rel=1e-9)
    scales = torch.tensor([1, 100, 1, 0.1, 1], dtype=torch.float64)
    assert choose_ridge(features, concepts * scales) == pytest.approx(ridge, rel=1e-9)


def test_noise_is_given_a_large_penalty_and_a_clean_relation_a_small_one(data):
    features, clean, _, _ = data(noise=0.0)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean_eigenvalue = float((features - features.mean(0)).square().sum() / features.shape[1])
    assert choose_ridge(features, clean) < 1e-4 * mean_eigenvalue
    assert choose_ridge(features, noise) > mean_eigenvalue


@pytest.mark.parametrize("bad", ["nan", "rows", "width", "integers", "vector", "no columns"])
def test_a_refused_batch_changes_nothing(data, bad):
    features, concepts, _, _ = data()
    statistics = RidgeStatistics()
    statistics.update(features, concepts)
    before = statistics.solve(1.0).weight
    nan = concepts.clone()
    nan[17, 2] = torch.nan
    batch, message = {
        "nan": ((features, nan), r"`concepts` to be finite.*in 1 of 300 rows, first in row 17"),
        "rows": ((features[:-1], concepts), "same number of rows, but got 299 and 300"),
        "width": ((features[:, :-1], concepts), "`features` to have 12 columns.*got 11"),
        "integers": ((features.long(), concepts), r"`features` to be a floating tensor.*int64 \(300, 12\)"),
        "vector": ((features, concepts[:, 0]), r"`concepts` to be a floating tensor.*\(300,\)"),
        "no columns": ((features[:, :0], concepts), "`features` to have one column or more"),
    }[bad]
    with pytest.raises(ValueError, match=message):
        statistics.update(*batch)
    assert statistics.count == 300
    assert torch.equal(statistics.solve(1.0).weight, before)


def test_a_predictor_does_not_change_with_what_comes_later(data):
    features, concepts, others, _ = data()
    statistics = RidgeStatistics()
    statistics.update(features[:200], concepts[:200])
    predictor = statistics.solve(1.0)
    before = predictor(others)
    statistics.update(features[200:] + 1, concepts[200:] + 1)
    assert torch.equal(predictor(others), before)
    assert not torch.equal(statistics.solve(1.0)(others), before)


@pytest.mark.parametrize("ridge", [0.0, 1e-320, 1.0, "cv"])
def test_features_that_say_nothing_predict_the_mean(data, ridge):
    features, concepts, others, _ = data()
    predictor = fit_ridge([(torch.full_like(features, 0.1), concepts)], ridge)
    assert torch.allclose(predictor(others), concepts.mean(0).expand(200, 5))


def test_bad_arguments(data):
    features, concepts, _, _ = data()
    for ridge in (-1.0, float("nan"), float("inf"), None, "auto", True):
        with pytest.raises(ValueError, match=r"`ridge`.*'cv'"):
            fit_ridge([(features, concepts)], ridge)
    statistics = RidgeStatistics()
    statistics.update(features[:1], concepts[:1])
    with pytest.raises(ValueError, match=r"two samples or more.*got 1"):
        statistics.solve(1.0)
    with pytest.raises(ValueError, match="choose_ridge"):
        statistics.solve("cv")
    with pytest.raises(ValueError, match=r"5 samples or more.*by 5 folds.*got 4"):
        choose_ridge(features[:4], concepts[:4])
    with pytest.raises(ValueError, match=r"`candidates`.*got none"):
        choose_ridge(features, concepts, candidates=[])
    with pytest.raises(ValueError, match=r"`folds`.*at least 2, but got 1"):
        choose_ridge(features, concepts, folds=1)
    other = RidgeStatistics()
    other.update(features[:, :3], concepts)
    with pytest.raises(ValueError, match=r"`features` to have 12 columns.*got 3"):
        statistics.merge(other)
