"""How a built set is written: its arrays, and what it was built from."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agm.data._npz import write_npz
from agm.data.builders.archives import Package

__all__ = ["write_set"]


def write_set(
    path: str | os.PathLike[str],
    name: str,
    arrays: Mapping[str, np.ndarray],
    sources: Sequence[Package],
    settings: Mapping[str, Any],
    groups: Sequence[Hashable] | None = None,
) -> Path:
    """Write a set in random order, with "meta.build", a JSON text of sources, settings and versions, and "meta.group".

    Args:
        path: the file, ending in .npz.
        name: of the set.
        arrays: as `agm.data.arrays` has them.
        sources: the packages.
        settings: whatever else decided about the values.
        groups: (N,) which samples belong together.

    Returns:
        The path written.

    Raises:
        OSError: the file cannot be written.
        ValueError: it has another ending.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Expected `path` to end in .npz, but got {path.name!r}. Add the ending.")
    build = {
        "dataset": name,
        **settings,
        "sources": [package.record() for package in sources],
        "numpy": np.__version__,
        **_pillow(arrays),
    }
    meta = {"meta.build": np.array(json.dumps(build, sort_keys=True))}
    if groups is not None:
        position = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        meta["meta.group"] = np.array([position[group] for group in groups], dtype=np.int32)
    samples = len(arrays["target"])
    order = np.random.default_rng(0).permutation(samples)
    whole = ("class_names", "meta.build")  # they have no row a sample
    return write_npz(
        path,
        {
            key: values if key in whole or values.ndim == 0 else values[order]
            for key, values in {**arrays, **meta}.items()
        },
    )


def _pillow(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    if "image" not in arrays:
        return {}
    import PIL

    return {"pillow": PIL.__version__}
