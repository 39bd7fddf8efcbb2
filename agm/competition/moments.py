"""Mean and scatter of rows that arrive in batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "exact"]


def exact(rows: Tensor) -> Tensor:
    """Rows in float64, detached; on the CPU where the device has no float64."""
    rows = rows.detach()
    return (rows.cpu() if rows.device.type == "mps" else rows).double()


class Moments:
    """Count, mean (K,) and scatter (K, K), the sum of (x - mean)(x - mean)^T, of rows (N, K), in float64.

    Every batch is centred by its own mean before it is squared, and two sets of moments are merged by the pairwise
    update of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances",
    1979). So a mean that is large beside the spread costs no digits, as it would in a sum of squares.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.empty(0, dtype=torch.float64)
        self.scatter = torch.empty(0, 0, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Take in (N, K) float64 rows, as wide as those before and in the same place."""
        if not len(rows):
            return
        batch = Moments()
        batch.count, batch.mean = len(rows), rows.mean(0)
        centred = rows - batch.mean
        # The rounding of the mean leaves a rest in each row, which the second mean removes.
        correction = centred.mean(0)
        batch.mean, centred = batch.mean + correction, centred - correction
        batch.scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Take in all rows that `other` has seen."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.scatter = other.count, other.mean, other.scatter
            return
        total = self.count + other.count
        shift = other.mean - self.mean
        # Not in place: who has read them keeps what they were.
        self.scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total
