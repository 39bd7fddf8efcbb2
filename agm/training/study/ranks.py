"""Methods ranked over datasets, with the critical difference of the Friedman and Nemenyi tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agm.training.compare import CONFIDENCE

__all__ = ["Ranking", "rank_methods"]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of methods over datasets, 1 the best.

    Args:
        ranks: method -> its mean rank, the best first.
        datasets: how many.
        p: of the Friedman test that all methods are alike; NaN for fewer than three methods or two datasets.
        critical_difference: two methods whose mean ranks differ by less cannot be told apart (Nemenyi, alpha 0.05).
    """

    ranks: Mapping[str, float]
    datasets: int
    p: float
    critical_difference: float


def rank_methods(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Rank methods on each dataset, and average.

    >>> rank_methods({"a": [0.9, 0.8, 0.7], "b": [0.8, 0.7, 0.6], "c": [0.8, 0.9, 0.5]}).ranks
    {'a': 1.3333333333333333, 'b': 2.5, 'c': 2.1666666666666665}

    Args:
        scores: method -> a score for each dataset, the higher the better; NaN, of a method that failed, is the worst.

    Returns:
        The ranks, the best first; equal scores share the mean of their ranks.

    Source: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, sections 3.2.2 and 3.2.3.

    Raises:
        ValueError: no method or no dataset, or methods with different numbers of scores.
    """
    from scipy import stats  # type: ignore[import-untyped]

    lengths = {len(values) for values in scores.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"Expected argument `scores` to have the same datasets for every method, but got {lengths}.")
    table = np.nan_to_num(np.array(list(scores.values()), dtype=float), nan=-math.inf)
    ranks = stats.rankdata(-table, axis=0)
    methods, datasets = table.shape
    mean = ranks.mean(axis=1)
    p, difference = math.nan, math.nan
    if methods > 1:
        q = float(stats.studentized_range.ppf(CONFIDENCE, methods, math.inf)) / math.sqrt(2)
        difference = q * math.sqrt(methods * (methods + 1) / (6 * datasets))
    if methods > 2 and datasets > 1:
        p = float(stats.friedmanchisquare(*ranks).pvalue)
    ordered = sorted(zip(mean.tolist(), scores, strict=True), key=lambda pair: pair[0])
    return Ranking({name: rank for rank, name in ordered}, datasets, p, difference)
