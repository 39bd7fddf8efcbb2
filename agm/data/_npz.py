"""Compressed `.npz` files whose bytes depend on their contents alone."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agm.data._files import replacing

# The earliest date that a zip entry can hold: the clock must not get into the file.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, fast: bool = False) -> Path:
    """Write `arrays` as `numpy.savez_compressed` would, under any names ("file" included), atomically.

    With `fast`, for large ones: whole numbers are compressed less, others not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, values in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_DATE)
            floating = np.asanyarray(values).dtype.kind == "f"
            entry.compress_type = zipfile.ZIP_STORED if fast and floating else zipfile.ZIP_DEFLATED
            entry.create_system = 3  # the same on Windows as on Unix
            entry.external_attr = 0o644 << 16
            entry._compresslevel = 1 if fast else 9  # type: ignore[attr-defined]  # public from Python 3.13 on
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(values), allow_pickle=False)
    return path
