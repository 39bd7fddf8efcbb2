"""Rows of HDF5 files, opened once in each process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from agm.data.layouts.extras import needed
from agm.data.layouts.stored import h5_array, open_h5

__all__ = ["H5Rows"]


class H5Rows:
    """A numeric dataset of an HDF5 file, of which only the rows that are asked for are read.

    It may be copied into other processes: each opens the file for itself.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        with open_h5(path) as file:
            self.shape: tuple[int, ...] = tuple(h5_array(path, file, key).shape)
        self._process = -1
        self._found: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int | tuple[int, ...]) -> np.ndarray:
        return np.asarray(self._open()[row], dtype=np.float32)

    def all(self) -> np.ndarray:
        """All rows."""
        return np.asarray(self._open()[...])

    def _open(self) -> Any:
        if self._process != os.getpid():
            file = needed("h5py").File(self.path, "r")
            self._found, self._process = h5_array(self.path, file, self.key), os.getpid()
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": -1, "_found": None}


class H5Table:
    """Numeric datasets of an HDF5 file by name, opened once in each process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path) as file:
            self.names = frozenset(file)
        self._process = -1
        self._file: Any = None

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a dataset, a path within the file: float32."""
        if self._process != os.getpid():
            self._file, self._process = needed("h5py").File(self.path, "r"), os.getpid()
        return np.asarray(h5_array(self.path, self._file, name)[...], dtype=np.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": -1, "_file": None}
