"""AV-Digits: spoken digits and noisy images of handwritten ones.

1,347 training and 450 test samples of ten classes; the test voices do not occur in training. "audio" is
(N, 1, 40, 80) float32, a standardised log-mel spectrogram of 0.8 s (mel bands by frames of 10 ms); "image" is
(N, 1, 8, 8) float32, pixels with Gaussian noise, standardised. `build_av_digits` makes it at other noise levels.
"""

from __future__ import annotations

import json
import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from agm.data.arrays import load_arrays
from agm.data.multimodal import MultimodalData

__all__ = ["load_av_digits", "read_build_settings"]


def load_av_digits() -> MultimodalData:
    """The dataset that comes with the package, at image noise 0.45 and speech at -5 to 10 dB."""
    with resources.as_file(_bundled()) as path:
        return load_arrays(path, name="av-digits")


def read_build_settings(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The arguments, versions and constants that an AV-Digits file was built with.

    Args:
        path: a file written by `build_av_digits`; the one that comes with the package by default.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file was not written by `build_av_digits`.
    """
    if path is None:
        with resources.as_file(_bundled()) as bundled:
            return read_build_settings(bundled)
    with np.load(Path(path), allow_pickle=False) as arrays:
        if "meta.build" not in arrays.files:
            raise ValueError(
                f"Expected {path} to hold `meta.build`, but got {', '.join(arrays.files)}. "
                "Give a file written by agm data build av-digits."
            )
        return json.loads(str(arrays["meta.build"]))


def _bundled() -> Traversable:
    return resources.files("agm.data").joinpath("av_digits.npz")
