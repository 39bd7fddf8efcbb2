"""Yeast (Elisseeff & Weston): functions of genes, from their expression and their phylogeny."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agm.data.builders.archives import Package, open_packages, require
from agm.data.builders.groups import split_groups
from agm.data.builders.tables import standardised
from agm.data.builders.writing import write_set

__all__ = ["build_yeast"]

SAMPLES, EXPRESSION, PHYLOGENY, LABELS = 2417, 79, 24, 14
_FILE = "river/datasets/yeast.csv.gz"


def build_yeast(path: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]], *, seed: int = 0) -> Path:
    """Build the multi-label set of yeast genes and write it as an `.npz` that `agm.data.load` reads.

    "expression" (N, 79) from micro-arrays and "phylogeny" (N, 24), each number standardised over the training samples;
    "target" (N, 14) says which functions a gene has. Genes with equal numbers are in one split.

    Args:
        path: the file to write, ending in .npz.
        sources: a wheel of river 0.26.1, as `pip download --no-deps` gives it.
        seed: of the split.

    Returns:
        The path written.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the package is another, or damaged.
    """
    (wheel,) = open_packages(sources, "river")
    numbers, target = _read(wheel, require(wheel.files(lambda name: name == _FILE), _FILE, wheel))
    groups = [row.tobytes() for row in numbers]
    split = split_groups(groups, target.astype(np.float64), np.random.default_rng(seed))
    values = standardised(numbers, split == "train")
    return write_set(
        path,
        "yeast",
        {
            "expression": values[:, :EXPRESSION],
            "phylogeny": values[:, EXPRESSION:],
            "target": target,
            "split": split,
            "class_names": np.array([f"class{number + 1}" for number in range(LABELS)]),
        },
        (wheel,),
        {"seed": seed},
    )


def _read(wheel: Package, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(N, 103) numbers and (N, 14) bool labels."""
    shape: tuple[int, ...] = ()
    try:
        header, *rows = csv.reader(gzip.decompress(content).decode("utf-8").splitlines())
        width = EXPRESSION + PHYLOGENY
        if len(header) == width + LABELS:
            numbers = np.array([[float(field) for field in row[:width]] for row in rows])
            labels = np.array([[{"1": True, "0": False}[field] for field in row[width:]] for row in rows])
            shape = (*numbers.shape, labels.shape[1])
    except (EOFError, KeyError, OSError, ValueError):
        pass
    if shape != (SAMPLES, EXPRESSION + PHYLOGENY, LABELS):
        raise ValueError(
            f"Expected {_FILE} in {wheel.path} to hold {SAMPLES} rows of 103 numbers and 14 labels 0 or 1, but "
            f"got {shape or 'something else'}. Use river 0.26.1."
        )
    return numbers, labels
