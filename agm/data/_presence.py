"""Which samples have which modalities, as it stands in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["read_present"]


def read_present(
    path: Path, arrays: Mapping[str, np.ndarray], modalities: Sequence[str], samples: int
) -> dict[str, np.ndarray] | None:
    """Modality -> (N,) bool, which samples have it; None where the file says nothing of it.

    Args:
        path: for messages.
        arrays: of the file.
        modalities: all of the file, in its order, which is that of the columns of `present`.
        samples: N.

    Raises:
        ValueError: both forms at once, another shape, values that are not true or false, or a sample without any.
    """
    own = {name: arrays[f"{name}.present"] for name in modalities if f"{name}.present" in arrays}
    if "present" not in arrays:
        if not own:
            return None
        found = {
            name: _truths(path, f"{name}.present", own[name], (samples,)) if name in own else np.ones(samples, bool)
            for name in modalities
        }
        return _some(path, found, samples)
    if own:
        raise ValueError(
            f"Expected {path} to hold `present` or {', '.join(f'`{name}.present`' for name in own)}, but got both. "
            "Remove either."
        )
    table = _truths(path, "present", arrays["present"], (samples, len(modalities)))
    found = {name: np.ascontiguousarray(table[:, place]) for place, name in enumerate(modalities)}
    return _some(path, found, samples)


def _some(path: Path, present: dict[str, np.ndarray], samples: int) -> dict[str, np.ndarray]:
    """The same, where every sample has a modality."""
    nothing = ~np.any([np.zeros(samples, bool), *present.values()], axis=0)
    if nothing.any():
        raise ValueError(
            f"Expected every sample of {path} to have a modality, but got none in {int(nothing.sum())} rows, first in "
            f"row {int(np.argmax(nothing))}. Leave these samples out."
        )
    return present


def _truths(path: Path, key: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    truths = values.dtype.kind == "b" or (values.dtype.kind in "iu" and bool(np.isin(values, (0, 1)).all()))
    if not truths or values.shape != shape:
        meaning = "which modalities each sample has" if len(shape) == 2 else "which samples have the modality"
        raise ValueError(
            f"Expected `{key}` in {path} to be of bool of shape {shape}, {meaning}, but got {values.dtype} of shape "
            f"{values.shape}. Store true and false, a row a sample."
        )
    return values.astype(bool)
