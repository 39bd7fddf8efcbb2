"""The random numbers of strategies, in one place, so that recorded ones can be put in theirs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Draws"]


class Draws:
    """Draws from torch's default generators, none of which waits for the device.

    A strategy asks `strategy.draws` for every random number that it uses; give it another object with these methods to
    replay recorded ones.
    """

    def permutation(self, count: int, device: torch.device) -> Tensor:
        """(count,) int64, a permutation of 0 ... count - 1."""
        return torch.randperm(count, device=device)

    def with_replacement(self, count: int, drawn: int, device: torch.device) -> Tensor:
        """(drawn,) int64, each uniform in 0 ... count - 1."""
        return torch.randint(count, (drawn,), device=device)

    def order_by_weight(self, weights: Tensor) -> Tensor:
        """(n,) int64: all of 0 ... n - 1 in the order in which draws without replacement give them.

        The probability of the next is its weight over that of all left; those of weight 0 come last. The first k are
        what `torch.multinomial(weights, k)` draws, for any k and without knowing it (Efraimidis and Spirakis, 2006).
        """
        return (weights / torch.empty_like(weights).exponential_()).argsort(descending=True)

    def by_weight(self, weights: Tensor, drawn: int) -> Tensor:
        """(drawn,) int64, each with probability proportional to its weight, with replacement."""
        return weights.multinomial(drawn, replacement=True)

    def uniform(self, count: int, device: torch.device) -> Tensor:
        """(count,) float32, each uniform in [0, 1)."""
        return torch.rand(count, device=device)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape of a tensor."""
        return torch.randn_like(like)

    def beta(self, concentration: float) -> float:
        """A number in (0, 1) from the symmetric Beta distribution."""
        # From the CPU's generator, whatever the device of the network.
        return float(torch.distributions.Beta(concentration, concentration).sample())

    def xavier(self, weight: Tensor) -> None:
        """Writes the weights (out, in) of a new layer: normal, of standard deviation sqrt(2 / (in + out))."""
        nn.init.xavier_normal_(weight)
