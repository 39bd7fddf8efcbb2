"""Datasets in files of the user's own: arrays by modality, labels, and a split.

A dataset is a set of named arrays, kept as an `.npz` file, as a dict in a `.pt` file, or as a folder with one
file an array (`audio.npy` or `audio.pt`; `target.txt`, `split.txt` and `class_names.txt` may be text, one
entry a line):

    audio, image ...    (N, ...)    one array a modality, under the modality's name
    target              (N,)        one class a sample: integers 0, 1, ... or strings
                        (N, L) bool any number of L labels a sample, or none
                        (N, K)      K numbers to be predicted, or one in (N,): floating-point
    task                ()          optional: "classes", "labels" or "numbers", where the target does not show it
    split               (N,)        "train", "validation" or "test" a sample; validation may be absent
    class_names         (C,)        optional: the classes in order; else those of the training labels, strings
                                    sorted, integers 0 to the largest. Of labels and numbers, what each is called
    audio.scale,        ()          optional: the modality is stored quantised, and its values are
    audio.offset                    audio * scale + offset; a number each, or (C, 1, 1) and the like: of each channel
    audio.present       (N,) bool   optional: which samples have the modality; what stands there for others is not read
    present             (N, M) bool the same of all modalities, in the order of the file (of a folder: by name)
    meta.ANYTHING                   ignored

Floating-point, bool and uint8 arrays and quantised ones become float32; other integers are token ids, of which 0 is
padding, and become int64. Strings are text and become UTF-8, (N, T) uint8 padded with zeros: T is the bytes of the
longest, or of an array of bytes its item size. Labels in `target.txt` that are all integers are class indices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from agm.data._misnamed import misnamed, other_split_names
from agm.data._npz import write_npz
from agm.data._presence import read_present
from agm.data._reading import LABELS, QUALITIES, read_arrays
from agm.data._targets import decoded, read_target, stored_target
from agm.data.multimodal import MultimodalData, Split, check_modalities

__all__ = ["load_arrays", "save"]

_SPLITS = ("train", "validation", "test")
_REQUIRED = {"target": "one label per sample", "split": '"train", "validation" or "test" for each sample'}


def load_arrays(
    path: str | os.PathLike[str], *, name: str | None = None, modalities: Sequence[str] | None = None
) -> MultimodalData:
    """Read a dataset from a folder, an `.npz` or a `.pt` file (the layout stands at the top of this module).

    Nothing in the file is executed: pickled objects are refused.

    Args:
        path: the folder or file.
        name: name of the dataset; the file's by default.
        modalities: which to take, in this order; all by default.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: anything in it is not as the layout says, or a modality is not there.
    """
    path = Path(path)
    arrays = read_arrays(path)
    for required, advice in _REQUIRED.items():
        if required not in arrays:
            raise ValueError(
                f"Expected {path} to hold `{required}`, but got {_listed(arrays)}. "
                f"{misnamed(required, arrays) or f'Add {advice}.'}"
            )
    split = _split(path, arrays["split"])
    labels = decoded(arrays["target"])
    if labels.ndim == 0:
        raise ValueError(f"Expected `target` in {path} to be of shape (N,), but got a single value. Give one a sample.")
    present = read_present(path, arrays, list(_modalities(arrays)), len(labels))
    inputs = _inputs(path, arrays, modalities, present)
    lengths = {"split": len(split)} | {name: len(values) for name, values in inputs.items()}
    for key, length in lengths.items():
        if length != len(labels):
            raise ValueError(
                f"Expected `{key}` in {path} to have {len(labels)} rows, one a label in `target`, "
                f"but got {length}. Give every sample one row and one label."
            )
    target, class_names = read_target(path, labels, split == "train", arrays.get("class_names"), arrays.get("task"))
    chosen = {which: torch.from_numpy(np.flatnonzero(split == which)) for which in _SPLITS}
    whole = None if present is None else torch.stack([torch.from_numpy(present[name]) for name in inputs], dim=1)
    marked = [which for which, rows in chosen.items() if len(rows)]
    if whole is not None and modalities is not None:  # what was left out may be all that a sample has
        chosen = {which: rows[whole[rows].any(dim=1)] for which, rows in chosen.items()}
    parts = {
        which: Split(
            {name: values[rows] for name, values in inputs.items()},
            target[rows],
            None if whole is None else whole[rows],
        )
        for which, rows in chosen.items()
        if len(rows)
    }
    if missing := [which for which in marked if which not in parts]:
        raise ValueError(
            f"Expected samples of {path} for {' and '.join(missing)} that have one of the modalities "
            f"{', '.join(inputs)}, but got none. Choose other modalities."
        )
    return MultimodalData(
        name=_name(path) if name is None else name,
        train=parts["train"],
        test=parts["test"],
        validation=parts.get("validation"),
        class_names=class_names,
    )


def save(data: MultimodalData, path: str | os.PathLike[str]) -> Path:
    """Write `data` as an `.npz` file that `agm.data.load` reads back with equal values in equal order.

    Args:
        data: the dataset; its name is not kept, for the file's own takes its place.
        path: the file to write, ending in .npz. Equal data give equal bytes.

    Returns:
        The path written.

    Raises:
        ValueError: another ending, a modality with a reserved name, or splits whose rows differ in shape (pad
            them alike first).
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Expected `path` to end in .npz, but got {path.name!r}. Add the ending.")
    arrays: dict[str, np.ndarray] = {}
    for modality in data.modalities:
        rows = [split.inputs[modality] for split in data.splits.values()]
        if modality in LABELS:
            raise ValueError(
                f"Expected the modalities to have other names than {', '.join(LABELS)}, "
                f"but got {modality!r}. Rename the modality."
            )
        if len({tuple(part.shape[1:]) for part in rows}) > 1:
            raise ValueError(
                f"Expected `{modality}` to have rows of one shape in all splits, "
                f"but got {[tuple(part.shape[1:]) for part in rows]}. Pad them alike."
            )
        values = torch.cat(rows).cpu().numpy()
        arrays[modality] = values.view(f"S{values.shape[1]}")[:, 0] if values.dtype == np.uint8 else values
    arrays |= stored_target(torch.cat([split.target for split in data.splits.values()]))
    if not data.complete:
        count = len(data.modalities)
        every = [
            torch.ones(len(split), count, dtype=torch.bool) if split.present is None else split.present
            for split in data.splits.values()
        ]
        arrays["present"] = torch.cat(every).cpu().numpy()
    arrays["split"] = np.repeat(list(data.splits), [len(split) for split in data.splits.values()])
    arrays["class_names"] = np.array(data.class_names)
    return write_npz(path, arrays)


def _name(path: Path) -> str:
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def _split(path: Path, split: np.ndarray) -> np.ndarray:
    split = decoded(split)
    unknown = [name for name in np.unique(split).tolist() if name not in _SPLITS]
    if unknown or split.ndim != 1:
        advice = other_split_names(unknown) or "Correct these entries."
        raise ValueError(
            f'Expected `split` in {path} to hold "train", "validation" or "test" for each sample, '
            f"but got {unknown[:3] if unknown else split.shape}. {advice}"
        )
    for required in ("train", "test"):
        if required not in split:
            raise ValueError(
                f'Expected `split` in {path} to mark samples as "train" and as "test", '
                f'but got none as "{required}". Mark some.'
            )
    return split


def _modalities(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: values for key, values in arrays.items() if key not in LABELS and "." not in key}


def _inputs(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    modalities: Sequence[str] | None,
    present: Mapping[str, np.ndarray] | None,
) -> dict[str, torch.Tensor]:
    inputs = _modalities(arrays)
    for key in arrays:
        modality, _, suffix = key.partition(".")
        if suffix and (suffix not in QUALITIES or modality not in inputs):
            raise ValueError(
                f"Expected a name with a dot in {path} to be MODALITY.scale, MODALITY.offset, MODALITY.present or "
                f"meta.NAME, but got {key!r}. Rename it."
            )
    if not inputs:
        raise ValueError(
            f"Expected {path} to hold at least one modality, but got {_listed(arrays)}. "
            "Add an array under the modality's name."
        )
    if modalities is not None:
        check_modalities(modalities, inputs)
        inputs = {key: inputs[key] for key in modalities}
    return {
        key: _input(
            path,
            key,
            values,
            arrays.get(f"{key}.scale"),
            arrays.get(f"{key}.offset"),
            None if present is None or len(present[key]) != len(values) else ~present[key],
        )
        for key, values in inputs.items()
    }


def _input(
    path: Path,
    key: str,
    values: np.ndarray,
    scale: np.ndarray | None,
    offset: np.ndarray | None,
    lacking: np.ndarray | None,
) -> torch.Tensor:
    """A modality as `Split` has it; of the samples that are `lacking` it, zeros."""
    if lacking is not None and values.ndim > 0 and values.dtype.kind in "fiubUS":
        values = values.copy()
        values[lacking] = values.dtype.type()
    if values.ndim == 1 and values.dtype.kind in "US" and scale is None and offset is None:
        return _text(path, key, values)
    if values.ndim == 0 or values.dtype.kind not in "fiub":
        raise ValueError(
            f"Expected `{key}` in {path} to be an array of real numbers, one row a sample, or one string a sample, "
            f"but got {values.dtype} of shape {values.shape}. Convert it, "
            "or name it meta.SOMETHING if it is no modality."
        )
    if scale is None and offset is None and values.dtype.kind in "iu" and values.dtype != np.uint8:
        return torch.from_numpy(values.astype(np.int64))
    with np.errstate(over="ignore"):  # what overflows float32 is reported below
        if scale is not None or offset is not None:
            values = _dequantised(path, key, values, scale, offset)
        values = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"Expected `{key}` in {path} to be finite, but got NaN or infinity (as float32) "
            f"in {int((~finite).sum())} rows, first in row {int(np.argmin(finite))}. "
            f"Remove or replace these values; where these samples lack the modality, say so: {key}.present, (N,) bool."
        )
    if lacking is not None:
        values[lacking] = 0.0  # whatever the offset makes of what stands there
    return torch.from_numpy(values)


def _dequantised(
    path: Path, key: str, values: np.ndarray, scale: np.ndarray | None, offset: np.ndarray | None
) -> np.ndarray:
    """values * scale + offset in float32, computed in float64 whatever they are stored in: float16 would be rounded
    twice. Some rows at a time, since float64 takes eight times the memory of bytes.
    """
    factor = _quantity(path, f"{key}.scale", 1.0 if scale is None else scale, values)
    shift = _quantity(path, f"{key}.offset", 0.0 if offset is None else offset, values)
    made = np.empty(values.shape, dtype=np.float32)
    rows = max(1, 2**22 // max(1, math.prod(values.shape[1:])))
    for begin in range(0, len(values), rows):
        made[begin : begin + rows] = values[begin : begin + rows].astype(np.float64) * factor + shift
    return made


def _quantity(path: Path, key: str, value: np.ndarray | float, values: np.ndarray) -> np.ndarray:
    """One number, or some that a row of `values` can be multiplied by."""
    value = np.asarray(value)
    fits = value.dtype.kind in "fiu" and value.size > 0
    if value.size == 1 and fits:
        return value.astype(np.float64).reshape(())
    row = values.shape[1:]
    fits = fits and 0 < value.ndim <= len(row)
    if not fits or any(n not in (1, m) for n, m in zip(value.shape[::-1], row[::-1], strict=False)):
        raise ValueError(
            f"Expected `{key}` in {path} to be one number, or numbers of each channel, but got {value.dtype} of shape "
            f"{value.shape} for rows {row}. Quantise a modality with one scale and one offset."
        )
    return value.astype(np.float64)


def _text(path: Path, key: str, values: np.ndarray) -> torch.Tensor:
    """Strings as (N, T) uint8: UTF-8, padded with zeros."""
    if values.dtype.kind == "U":
        values = np.char.encode(values, "utf-8")
    content = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    if content.shape[1] == 0 or not content.any():
        raise ValueError(f"Expected `{key}` in {path} to hold text, but got empty strings alone. Leave it out.")
    for row, text in enumerate(values.tolist()):
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(
                f"Expected `{key}` in {path} to be text in UTF-8, but got bytes in row {row} that are none. Encode it."
            ) from None
    return torch.from_numpy(content.copy())


def _listed(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(arrays) if arrays else "nothing"
