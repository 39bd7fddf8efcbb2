import math

import pytest
from scipy import stats

from agm.training.study.figures import holm
from agm.training.study.ranks import rank_methods

# Demsar, JMLR 2006, table 6: AUC of four variants of C4.5 on 14 datasets.
AUC = {
    "C4.5": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957],
    "C4.5+m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978],
    "C4.5+cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.000, 0.965, 0.614, 0.9751, 0.946],
    "C4.5+m+cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.000, 0.962, 0.669, 0.975, 0.970],
}


def test_the_example_of_the_paper():
    found = rank_methods(AUC)
    assert found.datasets == 14
    expected = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert found.ranks == pytest.approx(expected, abs=5e-4)
    assert list(found.ranks) == sorted(expected, key=expected.get)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=2e-3)
    assert found.p == pytest.approx(stats.friedmanchisquare(*AUC.values()).pvalue)


def test_ties_failures_and_too_few():
    found = rank_methods({"a": [1.0, math.nan], "b": [1.0, 0.2], "c": [0.0, 0.1]})
    assert found.ranks == {"b": 1.25, "a": 2.25, "c": 2.5}
    assert math.isnan(rank_methods({"a": [1.0], "b": [2.0]}).p)
    assert math.isnan(rank_methods({"a": [1.0]}).critical_difference)
    with pytest.raises(ValueError, match="same datasets for every method"):
        rank_methods({"a": [1.0], "b": [1.0, 2.0]})


def test_holm_by_hand():
    """0.005 * 4, 0.011 * 3, 0.02 * 2 (not below 0.033: 0.04), 0.04 * 1 (not below 0.04)."""
    found = holm({"a": 0.04, "b": 0.005, "c": 0.02, "d": 0.011})
    assert found == pytest.approx({"b": 0.02, "d": 0.033, "c": 0.04, "a": 0.04})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
