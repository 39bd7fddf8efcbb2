"""Packages of the extras "media" and "datasets", imported where they are needed; missing ones are asked for by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["needed"]

_EXTRAS = {
    "PIL": ("pillow", "agm-torch[media]"),
    "soundfile": ("soundfile", "agm-torch[media]"),
    "soxr": ("soxr", "agm-torch[media]"),
    "h5py": ("h5py", "agm-torch[media]"),
    "resampy": ("resampy", "resampy"),
    "scipy": ("scipy", "agm-torch[media]"),
    "datasets": ("datasets", "agm-torch[datasets]"),
    "webdataset": ("webdataset", "agm-torch[datasets]"),
    "transformers": ("transformers", "agm-torch[transformers]"),
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
