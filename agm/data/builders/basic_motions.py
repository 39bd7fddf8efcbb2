"""BasicMotions of the UEA archive: movements as a smart watch measures them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agm.data.builders.archives import Package, open_packages, require
from agm.data.builders.tables import standardised
from agm.data.builders.writing import write_set

__all__ = ["build_basic_motions"]

CLASSES = ("Standing", "Running", "Walking", "Badminton")
CHANNELS, LENGTH = 6, 100
PER_CLASS, HELD_OUT = 10, 2  # sequences of the archive's training part, and how many of them validate
_FOLDER = "aeon/datasets/data/BasicMotions/BasicMotions_"


def build_basic_motions(
    path: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]], *, seed: int = 0
) -> Path:
    """Build the set of BasicMotions and write it as an `.npz` that `agm.data.load` reads.

    "accelerometer" and "gyroscope" (N, 100, 3): ten seconds at 10 Hz, each channel standardised over the training
    samples. The test split is the archive's, and of its training part two sequences of each class validate. The source
    does not say which of the four people moved, so that they may occur in all splits.

    Args:
        path: the file to write, ending in .npz.
        sources: the wheel of aeon 1.6.0, as `pip download --no-deps` gives it.
        seed: of the choice of the validation split.

    Returns:
        The path written.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the package is another, or damaged.
    """
    (wheel,) = open_packages(sources, "aeon")
    files = wheel.files(lambda name: name.startswith(_FOLDER) and name.endswith(".ts"))
    parts = [_read(wheel, require(files, f"{_FOLDER}{part}.ts", wheel), part) for part in ("TRAIN", "TEST")]
    signal = np.concatenate([values for values, _ in parts]).transpose(0, 2, 1)  # (N, T, 6)
    target = np.concatenate([labels for _, labels in parts])
    split = np.repeat(["train", "test"], [len(labels) for _, labels in parts]).astype("U10")
    random = np.random.default_rng(seed)
    for label in range(len(CLASSES)):
        of_class = np.flatnonzero((target == label) & (split == "train"))
        split[random.permutation(of_class)[:HELD_OUT]] = "validation"
    values = standardised(signal, split == "train", over_time=True)
    return write_set(
        path,
        "basic-motions",
        {
            "accelerometer": values[:, :, :3],
            "gyroscope": values[:, :, 3:],
            "target": target,
            "split": split,
            "class_names": np.array([name.lower() for name in CLASSES]),
        },
        (wheel,),
        {"seed": seed},
    )


def _read(wheel: Package, content: bytes, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, 6, 100) and (N,) of a file in the archive's format: channels between colons, the class behind the last."""
    lines = content.decode("utf-8").splitlines()
    begin = next((number for number, line in enumerate(lines) if line.strip().lower() == "@data"), len(lines))
    try:
        rows = [line.split(":") for line in lines[begin + 1 :] if line.strip()]
        values = np.array([[[float(x) for x in channel.split(",")] for channel in row[:-1]] for row in rows])
        labels = np.array([CLASSES.index(row[-1].strip()) for row in rows])
    except ValueError:
        values, labels = np.empty(0), np.empty(0)
    if values.shape != (len(CLASSES) * PER_CLASS, CHANNELS, LENGTH):
        raise ValueError(
            f"Expected BasicMotions_{part}.ts in {wheel.path} to hold 40 sequences of {CHANNELS} channels of {LENGTH} "
            f"steps, but got {values.shape}. Use aeon 1.6.0."
        )
    return values, labels
