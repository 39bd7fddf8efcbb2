"""Competition strength: how much of a mono-modal concept cannot be read from the fused features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agm.competition._checks import check_batch, check_count, check_ridge, check_width
from agm.competition.moments import Moments, exact
from agm.competition.regression import FOLDS, Predictor, fit_ridge, whitening

__all__ = [
    "CUTOFF",
    "Strength",
    "StrengthStatistics",
    "competition_strength",
    "measure_strength",
    "strength_over_batches",
]

CUTOFF = 1e-10
_ROWS = 4096  # of a tensor in memory that are taken to float64 at a time

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Strength:
    """A competition strength and how sure it is.

    Args:
        value: d_m.
        low, high: percentile interval of the bootstrap over the samples that were predicted; the network, the
            concept and the regression are taken as they are.
        samples: number of these samples.
        outputs: p, width of the concept.
        rank: directions of the concept that vary: what `value` would be about rank / outputs for fused features
            that say nothing.
        ridge: the penalty of the regression.
    """

    value: float
    low: float
    high: float
    samples: int
    outputs: int
    rank: int
    ridge: float


class StrengthStatistics:
    """Residuals and spread of a concept over batches: 2 p**2 numbers in float64, however many samples there are.

    Args:
        predictor: fitted on samples that are not among these.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._concepts = Moments()
        self._residuals = torch.zeros_like(predictor.concept_mean).diag()  # sum of r r^T
        self._resolution = 0.0

    @property
    def count(self) -> int:
        return self._concepts.count

    def update(self, features: Tensor, concepts: Tensor) -> None:
        """Take in a batch, (N, D) and (N, p); one that is refused changes nothing.

        Raises:
            ValueError: another rank, dtype or width, rows that do not match, NaN or infinity.
        """
        residuals = self._residual(features, concepts)
        self._concepts.update(exact(concepts))
        self._residuals += residuals.T @ residuals
        self._resolution = max(self._resolution, torch.finfo(concepts.dtype).eps)

    def value(self, cutoff: float = CUTOFF) -> float:
        """d = trace(R pinv(N * Cov) R^T) / p.

        Raises:
            ValueError: no more samples than outputs, or outputs that are constant.
        """
        return float(self._whitened(self._white(cutoff)).trace()) / len(self._residuals)

    def rank(self, cutoff: float = CUTOFF) -> int:
        """Number of directions in which the concept varies."""
        return self._white(cutoff).shape[1]

    def terms(self, batches: Batches, cutoff: float = CUTOFF) -> Iterator[Tensor]:
        """Each sample's parts in the value, (N, 2) a batch, for the same batches once more.

        The first column is the sample's squared whitened residual |r_i W|**2, which sum to p d. The second one is what
        it adds to the covariance by which these are divided: with v_i its whitened concept and A = sum (r_i W)^T
        (r_i W), it is v_i^T A v_i * N / (N - 1), which sum to p d too. So a resample with weights w has, to first
        order in w - 1, the value d * sum(w * first) / sum(w * second): exactly (but for its mean) for one output, and
        constant, as it is, for features that say nothing.
        """
        white = self._white(cutoff)
        matrix = self._whitened(white) * (self.count / (self.count - 1))
        for features, concepts in batches:
            residuals = self._residual(features, concepts) @ white
            spread = (exact(concepts) - self._concepts.mean) @ white
            yield torch.stack([residuals.square().sum(1), ((spread @ matrix) * spread).sum(1)], dim=1)

    def _residual(self, features: Tensor, concepts: Tensor) -> Tensor:
        check_batch(features, concepts)
        check_width("concepts", concepts.shape[1], len(self._residuals))
        return self._predictor(features) - exact(concepts)

    def _whitened(self, white: Tensor) -> Tensor:
        return white.T @ self._residuals @ white

    def _white(self, cutoff: float) -> Tensor:
        """W (p, rank) with W W^T = pinv(N * Cov)."""
        if not 0 <= cutoff < 1:
            raise ValueError(f"Expected argument `cutoff` to be a number with 0 <= cutoff < 1, but got {cutoff!r}.")
        outputs = len(self._residuals)
        if self.count <= outputs:
            raise ValueError(
                f"Expected `concepts` to hold more samples than outputs, but got {self.count} samples of {outputs} "
                "outputs: their covariance would say more about the samples than about the concept. Use more samples, "
                "or a narrower concept, such as logits instead of features."
            )
        deviation = (self._concepts.scatter.diagonal() / self.count).sqrt()
        constant = (deviation <= 4 * self._resolution * self._concepts.mean.abs()).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"Expected every output of `concepts` to vary over the samples, but {len(constant)} of {outputs} are "
                f"constant: {', '.join(map(str, constant[:8]))}{' ...' if len(constant) > 8 else ''}. They hold "
                "nothing that could be learnt, and would count as learnt: leave them out, or train the concept's "
                "network until it tells samples apart."
            )
        return whitening(self._concepts.scatter * (self.count / (self.count - 1)), cutoff)


def competition_strength(
    fit_features: Tensor,
    fit_concepts: Tensor,
    features: Tensor,
    concepts: Tensor,
    ridge: float | Literal["cv"] = 120.0,
    *,
    cutoff: float = CUTOFF,
) -> float:
    """Competition strength of a modality (Li et al., ICCV 2023):

        d = trace(R pinv(N * Cov(C)) R^T) / p

    with R the residuals of a ridge regression from fused features to the mono-modal concept C, fitted on other samples
    than those that it predicts, and the covariance with N - 1 in its denominator. 0: all that the modality could have
    taught alone can be read linearly from the fused features; near 1: nothing of it; more: the prediction does worse
    than the mean. The value does not depend on the scale of the outputs or of combinations of them.

    Args:
        fit_features: (N1, D) fused features of samples on which neither network was trained, if possible.
        fit_concepts: (N1, p) the concept of the same samples: logits or features of the network that learnt from this
            modality alone.
        features, concepts: (N2, D) and (N2, p), of other samples; N2 > p.
        ridge: penalty of the regression, whose intercept is not penalised. 120 is the authors' for their data: a
            penalty counts beside the features' scatter, which grows with their scale and with N1. "cv" chooses one on
            the first samples (`choose_ridge`).
        cutoff: directions of the concept with at most this share of the largest direction's variance are left out by
            the pseudo-inverse. Logits that sum to a constant have one that is nothing but rounding: about 1e-14 in
            float32. For concepts computed in bfloat16, whose rounding is larger, give 1e-4.

    Returns:
        d, computed in float64 whatever the dtypes. It is for comparisons: even without competition a regression on
        finitely many samples leaves a rest.

    Raises:
        ValueError: shapes or rows that do not match, NaN or infinity, no more samples than outputs, constant outputs,
            or a bad penalty or cutoff.
    """
    check_ridge(ridge)
    fit, test = _in_memory(fit_features, fit_concepts, features, concepts)
    return _statistics(fit, test, ridge, FOLDS, 0)[0].value(cutoff)


def measure_strength(
    fit_features: Tensor,
    fit_concepts: Tensor,
    features: Tensor,
    concepts: Tensor,
    ridge: float | Literal["cv"] = 120.0,
    *,
    cutoff: float = CUTOFF,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Strength:
    """`competition_strength` with a bootstrap interval over the predicted samples.

    Args:
        fit_features, fit_concepts, features, concepts, ridge, cutoff: as there.
        resamples: number of bootstrap resamples.
        confidence: share of the resamples' values within the interval.
        seed: of the resamples, and of the folds of "cv"; same seed, same interval, on every device.

    Raises:
        ValueError: as `competition_strength`, and a bad `resamples` or `confidence`.
    """
    fit, test = _in_memory(fit_features, fit_concepts, features, concepts)
    return strength_over_batches(fit, test, ridge, cutoff=cutoff, resamples=resamples, confidence=confidence, seed=seed)


def strength_over_batches(
    fit: Batches,
    test: Batches,
    ridge: float | Literal["cv"] = 120.0,
    *,
    cutoff: float = CUTOFF,
    resamples: int = 1000,
    confidence: float = 0.95,
    folds: int = FOLDS,
    seed: int = 0,
) -> Strength:
    """`measure_strength` of datasets that do not fit in memory; the memory used does not grow with them.

    The bootstrap draws a Poisson(1) weight for every sample and resample instead of their numbers of draws, which
    needs no second look at earlier samples and differs from the usual one by O(1 / N). The weights come from a
    generator on the CPU, sample by sample, so that neither device nor batch size changes them.

    Args:
        fit: (features, concepts) of the samples to fit to, batch by batch; read once.
        test: of those to predict; read twice, so not an iterator.
        ridge, cutoff, resamples, confidence, seed: as in `measure_strength`.
        folds: of the cross-validation that "cv" asks for.

    Raises:
        ValueError: as `measure_strength`; `test` can be read only once, or changed in between.
    """
    check_ridge(ridge)
    check_count("resamples", resamples, 2)
    if not 0 < confidence < 1:
        raise ValueError(f"Expected argument `confidence` to be between 0 and 1, but got {confidence!r}. Use 0.95.")
    if isinstance(test, Iterator):
        raise ValueError(
            f"Expected argument `test` to be an iterable that can be read twice, but got the {type(test).__name__} of "
            "one pass. Give a list, a DataLoader without shuffling, or an object whose __iter__ begins anew."
        )
    statistics, predictor = _statistics(fit, test, ridge, folds, seed)
    value = statistics.value(cutoff)
    generator, seen = torch.Generator().manual_seed(seed), 0
    totals = torch.zeros(resamples, 2, dtype=torch.float64)
    for terms in statistics.terms(test, cutoff):
        for part in terms.cpu().split(_ROWS):
            weights = torch.poisson(torch.ones(len(part), resamples), generator=generator)
            totals += weights.double().T @ part
        seen += len(terms)
    if seen != statistics.count:
        raise ValueError(
            f"Expected argument `test` to give the same samples twice, but got {statistics.count} and then {seen}."
        )
    low, high = _percentiles(value, totals, confidence)
    outputs = len(predictor.concept_mean)
    return Strength(value, low, high, statistics.count, outputs, statistics.rank(cutoff), predictor.ridge)


def _percentiles(value: float, totals: Tensor, confidence: float) -> tuple[float, float]:
    ratios = totals[:, 0] / totals[:, 1]
    ratios = ratios[torch.isfinite(ratios)]  # a perfect prediction has no terms
    if value == 0 or not len(ratios):
        return value, value
    tail = (1 - confidence) / 2
    low, high = torch.quantile(ratios, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return value * low, value * high


def _statistics(
    fit: Batches, test: Batches, ridge: float | Literal["cv"], folds: int, seed: int
) -> tuple[StrengthStatistics, Predictor]:
    predictor = fit_ridge(fit, ridge, folds=folds, seed=seed)
    statistics = StrengthStatistics(predictor)
    for features, concepts in test:
        statistics.update(features, concepts)
    return statistics, predictor


def _in_memory(fit_features: Tensor, fit_concepts: Tensor, features: Tensor, concepts: Tensor) -> list[Batches]:
    check_batch(fit_features, fit_concepts, ("fit_features", "fit_concepts"))
    check_batch(features, concepts)
    check_width("features", features.shape[1], fit_features.shape[1])
    check_width("concepts", concepts.shape[1], fit_concepts.shape[1])
    if features.device != fit_features.device:
        raise ValueError(
            f"Expected argument `features` to be where `fit_features` are, on {fit_features.device}, but got "
            f"{features.device}. Move one of them."
        )
    return [
        list(zip(x.split(_ROWS), c.split(_ROWS), strict=True))
        for x, c in ((fit_features, fit_concepts), (features, concepts))
    ]
