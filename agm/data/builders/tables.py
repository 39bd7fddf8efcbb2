"""Numbers in columns and sequences, as training wants them: small, and of one scale."""

from __future__ import annotations

import numpy as np

__all__ = ["standardised"]


def standardised(values: np.ndarray, training: np.ndarray, *, over_time: bool = False) -> np.ndarray:
    """Each column with mean 0 and deviation 1 over the training samples, in float16.

    Zeros, which stand for an absent modality, are then an average input. A column that does not vary becomes zeros.
    Half precision has 11 bits, and what it rounds off is far below what the deviation of 1 means.

    Args:
        values: (N, D), or with `over_time` (N, T, D).
        training: (N,) bool.
        over_time: whether a column is D alone, at all T.
    """
    axes = (0, 1) if over_time else (0,)
    known = values[training].astype(np.float64)
    mean, deviation = known.mean(axes), known.std(axes)
    scale = np.where(deviation > 0, deviation, 1.0)
    return ((values - mean) / scale).astype(np.float16)
