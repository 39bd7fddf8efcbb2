"""Reads named arrays from the containers that people keep them in, and never runs what is in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Names that are no modality. As the only ones they may be text files in a folder.
LABELS = ("target", "split", "class_names")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a folder, an `.npz` or a `.pt` file, without those named meta.ANYTHING."""
    if not path.exists():
        raise FileNotFoundError(
            f"Expected {path} to be a folder, an .npz or a .pt file, but got nothing there. Check the path."
        )
    if path.is_dir():
        return _read_folder(path)
    if path.suffix not in (".npz", ".pt"):
        raise ValueError(
            f"Expected {path} to be a folder or to end in .npz or .pt, but got {path.suffix!r}. "
            "Convert it with numpy.savez or torch.save."
        )
    content = _read_file(path)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(
            f"Expected {path} to hold a dict of arrays by name, but got {type(content).__name__}. "
            "Save a dict such as {'audio': ..., 'target': ..., 'split': ...}."
        )
    return {key: _array(path, key, values) for key, values in content.items() if _is_wanted(key)}


def _read_folder(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    # Sorted, because the order of a folder's files differs between machines and modalities keep this order.
    for file in sorted(path.iterdir()):
        if file.suffix not in (".npy", ".pt", ".txt") or not _is_wanted(file.stem):
            continue
        if file.suffix == ".txt" and file.stem not in LABELS:
            continue  # a README, say
        if file.stem in arrays:
            raise ValueError(
                f"Expected {path} to hold `{file.stem}` once, but got several files of that name. Remove all but one."
            )
        arrays[file.stem] = _array(path, file.stem, _read_file(file))
    return arrays


def _read_file(file: Path) -> Any:
    try:
        if file.suffix == ".txt":
            entries = np.array(file.read_text(encoding="utf-8").split("\n"))
            entries = np.char.strip(entries)
            entries = entries[: len(entries) - (entries[-1] == "")]  # the end of the last line
            return _as_integers(entries) if file.stem == "target" else entries
        if file.suffix == ".pt":
            return torch.load(file, map_location="cpu", weights_only=True)
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {key: content[key] for key in content.files if _is_wanted(key)}
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        if isinstance(error, pickle.UnpicklingError):
            reason = "pickled objects (numpy's among them), or no such file at all"
        else:
            reason = f"{type(error).__name__}: {error}".split("\n", 1)[0].rstrip(".")
        raise ValueError(
            f"Expected {file} to be a readable {file.suffix} file of plain values, but got: {reason}. "
            "Save tensors and lists in a .pt file, numpy arrays in .npy or .npz, and no other objects."
        ) from error


def _as_integers(entries: np.ndarray) -> np.ndarray:
    """Text labels that are all integers mean integers."""
    try:
        return entries.astype(np.int64)
    except (ValueError, OverflowError):
        return entries


def _is_wanted(key: str) -> bool:
    return not key.startswith("meta.")


def _array(path: Path, key: str, values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach()
        # numpy has no bfloat16.
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.empty((), dtype=object)
    if array.dtype == object:
        raise ValueError(
            f"Expected `{key}` in {path} to be an array of numbers or strings, "
            f"but got Python objects or rows of different lengths. Pad the rows to one shape."
        )
    return array
