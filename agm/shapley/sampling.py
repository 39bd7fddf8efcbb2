"""Some of the subsets instead of all: Shapley values estimated from sampled permutations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agm.shapley.weights import MAX_MODALITIES, subset_weights

__all__ = ["SubsetSample", "SubsetSampler", "check_subsets", "sample_subsets"]


@dataclass(frozen=True)
class SubsetSample:
    """Subsets of modalities, and the weights by which their masked logits estimate the mono-modal responses.

    Attributes:
        modalities: M.
        subsets: bitmasks (bit m set: modality m present) of the rows of the masked logits; the last has all modalities.
        weights: (M, R) float64, on the CPU: the estimate is `phi_m = sum_r weights[m, r] * z_r`.
    """

    modalities: int
    subsets: tuple[int, ...]
    weights: Tensor


def check_subsets(subsets: int, modalities: int) -> None:
    """That a step can be estimated from at most `subsets` masked subsets.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is less than the `2 * (M - 1)` of one pair of permutations.
    """
    if isinstance(subsets, bool) or not isinstance(subsets, int):
        raise TypeError(f"Expected argument `subsets` to be an integer or None for all, but got {subsets!r}.")
    least = 2 * (modalities - 1)
    if subsets < least:
        raise ValueError(
            f"Expected argument `subsets` to be at least {least} for {modalities} modalities, the subsets that a "
            f"permutation and its reverse pass through, but got {subsets}."
        )


def sample_subsets(modalities: int, subsets: int, generator: torch.Generator | None = None) -> SubsetSample:
    """Draws permutations of the modalities, in antithetic pairs, until no other pair fits into `subsets` subsets.

    A modality's Shapley value is the mean, over the orders in which modalities may join, of what it adds when it joins
    (Castro, Gómez & Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009). Here the mean is
    over drawn orders, each beside its reverse (Mitchell et al., "Sampling permutations for Shapley value estimation",
    JMLR 2022). The estimate is unbiased, and as what the modalities of one order add telescopes, the
    responses sum to the joint logits exactly, whatever is drawn. The gradients of the modulation are scaled by
    `c_r = sum_m kappa_m * weights[m, r]`, as they are with all subsets.

    Args:
        modalities: M, from 2 to 16.
        subsets: how many proper subsets may be evaluated, at least `2 * (M - 1)`. A pair takes that many; pairs are
            drawn independently, so that a subset may come twice.
        generator: a CPU generator; torch's own by default.

    Returns:
        the subsets of the drawn pairs and, last, all modalities; with `2**M - 2` subsets or more nothing is drawn: all
        of them, with the exact weights.

    Raises:
        TypeError, ValueError: a number that cannot be.
    """
    if isinstance(modalities, bool) or not isinstance(modalities, int) or not 2 <= modalities <= MAX_MODALITIES:
        raise ValueError(
            f"Expected argument `modalities` to be an integer from 2 to {MAX_MODALITIES}, but got {modalities!r}."
        )
    check_subsets(subsets, modalities)
    if subsets >= 2**modalities - 2:
        return SubsetSample(modalities, tuple(range(1, 2**modalities)), subset_weights(modalities))
    pairs = subsets // (2 * (modalities - 1))
    orders = [torch.randperm(modalities, generator=generator) for _ in range(pairs)]
    rows: list[int] = []
    weights = torch.zeros(modalities, 2 * pairs * (modalities - 1) + 1, dtype=torch.float64)
    for order in (way for one in orders for way in (one, one.flip(0))):
        joined = 0
        for place, m in enumerate(order.tolist()):
            if place:
                weights[m, len(rows) - 1] -= 1
            joined |= 1 << m
            if place == modalities - 1:
                weights[m, -1] += 1
            else:
                weights[m, len(rows)] += 1
                rows.append(joined)
    return SubsetSample(modalities, (*rows, 2**modalities - 1), weights / (2 * pairs))


class SubsetSampler(nn.Module):
    """Draws other subsets in every step, the same ones in every run: the draw is a function of the seed and its number.

    The state dict holds that number, so that a resumed run goes on with the draws of an uninterrupted one.

    Attributes:
        draws: the number of the next draw; whoever has used one counts it.

    Args:
        modalities, subsets: as in `sample_subsets`.
        seed: from 0 to 2**32 - 1.

    Raises:
        TypeError, ValueError: a number that cannot be.
    """

    def __init__(self, modalities: int, subsets: int, seed: int = 0) -> None:
        super().__init__()
        check_subsets(subsets, modalities)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"Expected argument `seed` to be an integer from 0 to 2**32 - 1, but got {seed!r}.")
        self.modalities = modalities
        self.subsets = subsets
        self.seed = seed
        self.draws = 0

    def forward(self) -> SubsetSample:
        generator = torch.Generator().manual_seed(self.seed << 32 | self.draws)
        return sample_subsets(self.modalities, self.subsets, generator)

    def rows(self) -> int:
        """Proper subsets that a draw has."""
        pair = 2 * (self.modalities - 1)
        every: int = 2**self.modalities - 2
        return every if self.subsets >= every else self.subsets // pair * pair

    def get_extra_state(self) -> dict[str, Any]:
        return {"draws": self.draws}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.draws = int(state["draws"])

    def extra_repr(self) -> str:
        return f"subsets={self.subsets}, seed={self.seed}"
