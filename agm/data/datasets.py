"""Datasets by name or by path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agm.data.arrays import load_arrays
from agm.data.av_digits import load_av_digits
from agm.data.avt_digits import load_avt_digits
from agm.data.multimodal import MultimodalData

__all__ = ["available", "load"]

_BUNDLED: dict[str, Callable[[], MultimodalData]] = {"av-digits": load_av_digits, "avt-digits": load_avt_digits}


def available() -> tuple[str, ...]:
    """Names of the datasets that come with the package."""
    return tuple(_BUNDLED)


def load(name_or_path: str | os.PathLike[str]) -> MultimodalData:
    """Load a dataset.

    Args:
        name_or_path: one of `available()`; or a folder, `.npz` or `.pt` file in the layout of `agm.data.arrays`; or a
            folder with a dataset of the field, of Hugging Face or of WebDataset (`agm.data.layouts`), which is decoded
            into memory. A known name wins over a folder of that name ("./av-digits" is the folder).

    Raises:
        FileNotFoundError: the path does not exist.
        ModuleNotFoundError: a package that decodes is not installed.
        ValueError: an unknown name, or a file that is not as the layout says.
    """
    name = os.fspath(name_or_path)
    if name in _BUNDLED:
        return _BUNDLED[name]()
    looks_like_path = os.path.dirname(name) or os.path.splitext(name)[1]
    if not looks_like_path and not os.path.exists(name):
        raise ValueError(
            f"Expected `name_or_path` to be a known dataset ({', '.join(_BUNDLED)}) "
            f"or the path of a folder, .npz or .pt file, but got {name!r}. Check the spelling."
        )
    layout = _layout_of(Path(name))
    return load_arrays(name) if layout is None else layout


def _layout_of(path: Path) -> MultimodalData | None:
    """The dataset of a folder that has a layout of the field (agm.data.layouts), in memory; None for other paths."""
    if not path.is_dir() or any((path / f"target{ending}").exists() for ending in (".npy", ".pt", ".txt")):
        return None
    from agm.data.layouts import load_layout, open_layout, recognise

    return None if recognise(path) is None else load_layout(open_layout(path))
