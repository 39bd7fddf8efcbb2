"""Arrays in files of one kind each: `.npy` mapped from the disk, `.pt`, `.pkl`, and HDF5."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agm.data._files import known_failure, memory, open_ordinary
from agm.data._reading import HEADER, Refused, check_header, load_tensors
from agm.data.layouts.extras import needed
from agm.data.layouts.pickles import load_pickle

__all__ = ["h5_array", "map_array", "open_h5", "read_stored"]


def map_array(path: Path) -> np.ndarray:
    """The array of an `.npy` file, of which nothing is read until it is used.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no such file, holds pickled objects, or has more or fewer bytes than its header says.
    """
    try:
        with open_ordinary(path) as file:
            check_header(file, file.seek(0, 2))
    except Refused as error:
        with open_ordinary(path) as file:
            reason = known_failure(file.read(200)) or str(error)
        raise ValueError(
            f"Expected {path} to be an array of numpy (.npy), but got: {reason}. "
            "Download it again: it may have stopped halfway."
        ) from None
    return np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=HEADER)


def read_stored(path: Path) -> Any:
    """What a `.npy`, `.pt`, `.pkl` or `.p` file holds: arrays in plain containers, nothing executed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: another ending, other content, or damage.
    """
    if path.suffix == ".npy":
        return map_array(path)
    if path.suffix in (".pkl", ".p", ".pickle"):
        return load_pickle(path)
    if path.suffix != ".pt":
        raise ValueError(f"Expected {path} to end in .npy, .pt or .pkl, but got {path.suffix!r}. Convert it.")
    try:
        content = load_tensors(path)
    except Refused as error:
        raise ValueError(
            f"Expected {path} to be a .pt file of plain tensors, but got: {error}. Save it again as tensors."
        ) from None
    return content.detach().float().numpy() if isinstance(content, torch.Tensor) else content


@contextmanager
def open_h5(path: Path) -> Iterator[Any]:
    """An HDF5 file to read. Links in it that lead to other files are not followed (`h5_array`).

    Raises:
        ModuleNotFoundError: h5py is not installed.
        OSError: the file cannot be opened.
        ValueError: it is no HDF5 file, or an incomplete one.
    """
    h5py = needed("h5py")
    with open_ordinary(path) as raw:
        try:
            file = h5py.File(raw, "r")
        except (OSError, RuntimeError, ValueError) as error:
            raw.seek(0)
            reason = known_failure(raw.read(200)) or " ".join(str(error).split())
            raise ValueError(
                f"Expected {path} to be an HDF5 file, but got: {reason}. Download it again: did it stop halfway?"
            ) from None
        with file:
            yield file


def h5_array(path: Path, file: Any, key: str) -> Any:
    """A numeric dataset of an open HDF5 file, unread: its own, not a link's, and not larger than this machine's memory.

    Raises:
        ValueError: it is not there, or no array of numbers.
    """
    h5py = needed("h5py")
    try:
        link = file.get(key, getlink=True)
        found = file[key] if isinstance(link, h5py.HardLink) else None
    except (KeyError, OSError, RuntimeError, ValueError):
        found = None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external or found.dtype.kind not in "fiub":
        names = ", ".join(list(file)[:5])
        raise ValueError(
            f"Expected {path} to hold an array {key!r}, but got {names or 'nothing'}. Is it the right file?"
        )
    if math.prod(found.shape) * found.dtype.itemsize > memory():
        raise ValueError(f"Expected `{key}` in {path} to fit into memory, but got shape {found.shape}. Check the file.")
    return found


def h5_images(path: Path, key: str) -> list[np.ndarray]:
    """Files that an HDF5 dataset holds, each an array of bytes.

    Raises:
        ValueError: there are none.
    """
    h5py = needed("h5py")
    with open_h5(path) as file:
        found = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
        if (
            isinstance(found, h5py.Dataset)
            and found.ndim
            and len(found)
            and not found.is_virtual
            and not found.external
        ):
            content = h5py.check_vlen_dtype(found.dtype)
            if content == np.uint8 or content is bytes or found.dtype.kind in "SV":
                return [np.frombuffer(bytes(item), np.uint8) for item in found]
        raise ValueError(f"Expected {path} to hold image files in {key!r}, but got none. Download it again.")
