"""Ridge regression from features to concepts, over batches: statistics, closed-form solution, choice of the penalty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agm.competition._checks import check_batch, check_count, check_ridge, check_width
from agm.competition.moments import Moments, exact

__all__ = ["Predictor", "RidgeStatistics", "choose_ridge", "fit_ridge", "whitening"]

FOLDS = 5
# Around the mean eigenvalue of the features' scatter, so that neither their scale nor their number matters.
_GRID = torch.logspace(-6, 2, 17, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Predictor:
    """A fitted ridge regression, with the means that its intercept stands for.

    Args:
        weight: (D, p) float64.
        feature_mean, concept_mean: (D,) and (p,) float64, of the samples that it was fitted to.
        ridge: the penalty.
    """

    weight: Tensor
    feature_mean: Tensor
    concept_mean: Tensor
    ridge: float

    @property
    def intercept(self) -> Tensor:
        """(p,) float64; it is not penalised."""
        return self.concept_mean - self.feature_mean @ self.weight

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, p) float64."""
        check_width("features", features.shape[1], len(self.feature_mean))
        # Not features @ weight + intercept: with a large mean that is a difference of large numbers.
        return (exact(features) - self.feature_mean) @ self.weight + self.concept_mean


class RidgeStatistics:
    """What ridge regression needs to know of the samples: their number, means, and centred products.

    Takes (D + p)**2 numbers in float64 on the device of the first batch, however many samples there are.
    """

    def __init__(self) -> None:
        self._moments = Moments()
        self._widths = (0, 0)

    @property
    def count(self) -> int:
        return self._moments.count

    def update(self, features: Tensor, concepts: Tensor) -> None:
        """Take in a batch; one that is refused changes nothing.

        Args:
            features: (N, D), any floating dtype; they need no graph and leave none.
            concepts: (N, p), of the same samples.

        Raises:
            ValueError: another rank or dtype, rows that do not match, NaN or infinity, other widths than before.
        """
        check_batch(features, concepts)
        widths = (features.shape[1], concepts.shape[1])
        if self.count:
            check_width("features", widths[0], self._widths[0])
            check_width("concepts", widths[1], self._widths[1])
        self._moments.update(torch.cat([exact(features), exact(concepts)], dim=1))
        self._widths = widths

    def merge(self, other: RidgeStatistics) -> None:
        """Take in all samples that `other` has seen (of another worker, say).

        Raises:
            ValueError: its widths are others.
        """
        if not other.count:
            return
        if self.count:
            check_width("features", other._widths[0], self._widths[0])
            check_width("concepts", other._widths[1], self._widths[1])
        self._moments.merge(other._moments)
        self._widths = other._widths

    def solve(self, ridge: float) -> Predictor:
        """The minimum of sum |c - W^T x - b|**2 + ridge * |W|**2, b unpenalised.

        By the eigenvectors of the features' scatter; where these do not determine W (`ridge` 0, or too small to
        count in float64), it is the one of least norm.

        Raises:
            ValueError: fewer than two samples, or `ridge` negative or not finite.
        """
        if isinstance(ridge, str):
            raise ValueError(
                f"Expected argument `ridge` to be a number, but got {ridge!r}. Call agm.competition.choose_ridge first."
            )
        check_ridge(ridge)
        return self.solve_all([ridge])[0]

    def solve_all(self, ridges: Sequence[float]) -> list[Predictor]:
        """`solve` for many penalties: the eigenvectors, which cost most, are found once."""
        if self.count < 2:
            raise ValueError(f"Expected two samples or more to fit a regression to, but got {self.count}.")
        scatter, cross, _ = self.products()
        values, vectors = torch.linalg.eigh(scatter)
        rotated = vectors.T @ cross
        limits = torch.finfo(torch.float64)
        negligible = (len(values) * limits.eps * values[-1]).clamp(min=limits.tiny)
        predictors = []
        for ridge in ridges:
            penalised = values.clamp(min=0) + ridge
            inverse = torch.where(penalised > negligible, 1 / penalised, 0.0)
            predictors.append(Predictor(vectors @ (inverse[:, None] * rotated), *self.means(), float(ridge)))
        return predictors

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of the features (D,) and of the concepts (p,)."""
        features, concepts = self._moments.mean.split(self._widths)
        return features, concepts

    def products(self) -> tuple[Tensor, Tensor, Tensor]:
        """Centred products of features with features (D, D) and concepts (D, p), and of concepts (p, p)."""
        width, scatter = self._widths[0], self._moments.scatter
        return scatter[:width, :width], scatter[:width, width:], scatter[width:, width:]


class Folds:
    """`RidgeStatistics` of the parts of a stream of samples: of every `folds` samples, each part gets one at random.

    Which one does not depend on how the samples are cut into batches.
    """

    def __init__(self, folds: int, seed: int) -> None:
        self.parts = [RidgeStatistics() for _ in range(folds)]
        self._generator = torch.Generator().manual_seed(seed)
        self._next = torch.empty(0, dtype=torch.int64)

    def update(self, features: Tensor, concepts: Tensor) -> None:
        check_batch(features, concepts)
        places = self._places(len(features)).to(features.device)
        for number, part in enumerate(self.parts):
            part.update(features[places == number], concepts[places == number])

    def _places(self, count: int) -> Tensor:
        folds = len(self.parts)
        groups = -(-max(count - len(self._next), 0) // folds)
        # Group by group: drawn together, they would depend on how many are asked for at once.
        drawn = [torch.randperm(folds, generator=self._generator) for _ in range(groups)]
        known = torch.cat([self._next, *drawn])
        self._next = known[count:]
        return known[:count]


def choose_ridge(
    features: Tensor,
    concepts: Tensor,
    *,
    candidates: Sequence[float] | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> float:
    """The penalty under which the concepts are predicted best, by cross-validation.

    The error is the competition strength's own: squared, with the concepts whitened, so that no output outweighs the
    others by its scale. Of equal penalties the largest is taken.

    Args:
        features: (N, D) of the samples that the regression is fitted to.
        concepts: (N, p).
        candidates: penalties >= 0; by default 17 from 1e-6 to 100 times the mean eigenvalue of the features' scatter.
        folds: number of parts, of which each is predicted from the others.
        seed: of the division into parts.

    Raises:
        ValueError: bad features or concepts, fewer samples than `folds`, no or bad candidates.
    """
    check_count("folds", folds, 2)
    divided = Folds(folds, seed)
    divided.update(features, concepts)
    return _chosen(divided.parts, candidates)


def fit_ridge(
    batches: Iterable[tuple[Tensor, Tensor]], ridge: float | Literal["cv"], *, folds: int = FOLDS, seed: int = 0
) -> Predictor:
    """Fit over batches of (features, concepts), each seen once.

    Args:
        batches: (N, D) and (N, p) each.
        ridge: the penalty, or "cv" for that of `choose_ridge`.
        folds, seed: of the cross-validation.

    Raises:
        ValueError: as `RidgeStatistics` and `choose_ridge`.
    """
    check_ridge(ridge)
    check_count("folds", folds, 2)
    if ridge != "cv":
        whole = RidgeStatistics()
        for features, concepts in batches:
            whole.update(features, concepts)
        return whole.solve(ridge)
    divided = Folds(folds, seed)
    for features, concepts in batches:
        divided.update(features, concepts)
    return _merged(divided.parts).solve(_chosen(divided.parts, None))


def whitening(covariance: Tensor, cutoff: float) -> Tensor:
    """V (p, k), V V^T = pinv(covariance (p, p)); eigenvalues up to `cutoff` of the largest are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > cutoff * values[-1]
    white: Tensor = vectors[:, kept] / values[kept].sqrt()
    return white


def _chosen(parts: Sequence[RidgeStatistics], candidates: Sequence[float] | None) -> float:
    whole = _merged(parts)
    if any(not part.count for part in parts) or whole.count < 4:
        raise ValueError(
            f"Expected {max(len(parts), 4)} samples or more to choose a penalty on by {len(parts)} folds, but got "
            f"{whole.count}. Give the penalty as a number."
        )
    scatter, _, concepts = whole.products()
    if candidates is None:
        candidates = (_GRID * (float(scatter.diagonal().mean()) or 1.0)).tolist()
    if not candidates:
        raise ValueError("Expected argument `candidates` to hold one penalty or more, but got none.")
    for candidate in candidates:
        if candidate == "cv":
            raise ValueError("Expected argument `candidates` to hold numbers >= 0, but got 'cv'.")
        check_ridge(candidate)
    ordered = sorted(candidates, reverse=True)
    white = whitening(concepts, 1e-10)
    errors = torch.zeros(len(ordered), dtype=torch.float64, device=concepts.device)
    for number, held_out in enumerate(parts):
        rest = _merged([part for place, part in enumerate(parts) if place != number])
        errors += torch.stack([_error(held_out, predictor, white) for predictor in rest.solve_all(ordered)])
    return float(ordered[int(errors.argmin())])


def _merged(parts: Sequence[RidgeStatistics]) -> RidgeStatistics:
    whole = RidgeStatistics()
    for part in parts:
        whole.merge(part)
    return whole


def _error(samples: RidgeStatistics, predictor: Predictor, white: Tensor) -> Tensor:
    """Sum of the squared whitened residuals of a predictor on samples of which only the statistics are known."""
    features, cross, concepts = samples.products()
    feature_mean, concept_mean = samples.means()
    weight = predictor.weight @ white
    offset = (concept_mean - predictor.concept_mean) @ white - (feature_mean - predictor.feature_mean) @ weight
    spread = (white * (concepts @ white)).sum() - 2 * (weight * (cross @ white)).sum()
    error: Tensor = spread + (weight * (features @ weight)).sum() + samples.count * offset.square().sum()
    return error
