"""Packages of the extras "media" and "datasets", imported where they are needed; missing ones are asked for by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["needed"]

_EXTRAS = {
    "PIL": ("pillow", "agm[media]"),
    "soundfile": ("soundfile", "agm[media]"),
    "soxr": ("soxr", "agm[media]"),
    "h5py": ("h5py", "agm[media]"),
    "resampy": ("resampy", "resampy"),
    "scipy": ("scipy", "agm[media]"),
    "datasets": ("datasets", "agm[datasets]"),
    "webdataset": ("webdataset", "agm[datasets]"),
    "transformers": ("transformers", "agm[transformers]"),
}


def needed(module: str) -> Any:
    """The module, imported.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    package, install = _EXTRAS[module.partition(".")[0]]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Expected the package {package} to be installed, but got none. Install it with: pip install '{install}'",
            name=error.name,
        ) from None
