"""Reads named arrays from the containers that people keep them in, and never runs what is in them."""

from __future__ import annotations

import errno
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from agm.data._files import memory, open_ordinary, read_text

__all__ = ["LABELS", "QUALITIES", "Refused", "check_header", "load_tensors", "read_arrays"]

# Names that are no modality. As the only ones they may be text files in a folder.
LABELS = ("target", "split", "class_names", "task", "present")
# What NAME.QUALITY says of a modality.
QUALITIES = ("scale", "offset", "present")

DEFLATE = 1032  # bytes at most that a byte of a deflated entry can become
ENTRIES = 100_000  # of an archive at most
HEADER = 64 * 1024  # bytes of the header of an array at most


class Refused(ValueError):
    """A file is not what it should be, in words that quote nothing of its content."""


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


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote, onto the CPU: tensors and plain values, and no more memory than the file has bytes.

    Raises:
        OSError: the file cannot be opened.
        Refused: it is not such a file, or damaged.
    """
    with open_ordinary(path) as file:
        _check_archive(file, stored=True)
        size = file.seek(0, 2)
        file.seek(0)
        with _unharmed("pickled objects that are no plain values, or damage"):
            content = torch.load(file, map_location="cpu", weights_only=True)
    total = 0
    for leaf in pytree.tree_leaves(content):
        if isinstance(leaf, torch.Tensor):
            _check_tensor(leaf)
            total += leaf.numel() * leaf.element_size()
    if total > max(size, 2**20) * 8:  # tensors may share their memory
        raise Refused(f"its tensors have {total} bytes, and the file {size}")
    return content


def _check_tensor(tensor: torch.Tensor) -> None:
    kind = str(tensor.layout) if tensor.layout is not torch.strided else "nested" if tensor.is_nested else ""
    kind = kind or ("quantised" if tensor.is_quantized else "conjugate" if tensor.is_conj() else "")
    kind = kind or ("negated" if tensor.is_neg() else "")
    if kind:
        raise Refused(f"a tensor in it is {kind}. Save x.clone() of a dense one")
    if tensor.numel() and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refused("a tensor in it is an expanded one, larger than its memory. Save x.clone()")


def _check_archive(file: IO[bytes], stored: bool = False) -> list[zipfile.ZipInfo]:
    """The entries of a zip file: none twice, none larger than its bytes can become, all within the memory."""
    reason = "it is no archive as numpy.savez and torch.save write them, or it is damaged"
    with _unharmed(reason), zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) <= ENTRIES and stored and archive.testzip() is not None:  # torch does not look at these
            raise Refused("a checksum in it is wrong")
    if sum(entry.compress_size for entry in entries) > file.seek(0, 2):
        raise Refused("its entries lie on each other")
    if len(entries) > ENTRIES:
        raise Refused(f"it has {len(entries)} entries")
    if len({entry.filename for entry in entries}) < len(entries):
        raise Refused("two of its entries have one name")
    for entry in entries:
        allowed = (zipfile.ZIP_STORED,) if stored else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if entry.compress_type not in allowed or entry.flag_bits & 1:
            raise Refused("an entry is compressed or encrypted in a way that is not read")
        if entry.file_size > entry.compress_size * DEFLATE + 1024:
            raise Refused(f"an entry declares {entry.file_size} bytes, and has {entry.compress_size}")
    if (total := sum(entry.file_size for entry in entries)) > memory():
        raise Refused(f"its entries have {total} bytes, more than this machine's memory")
    return entries


def _read_folder(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    # Sorted, because the order of a folder's files differs between machines and modalities keep this order.
    for file in sorted(path.iterdir()):
        if file.suffix not in (".npy", ".pt", ".txt") or not _is_wanted(file.stem):
            continue
        if file.suffix == ".txt" and file.stem not in LABELS:
            if file.stem.rpartition(".")[2] in QUALITIES and "." in file.stem:
                raise ValueError(f"Expected {file} to be a .npy or .pt file, but got text. Store it as an array.")
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
            entries = np.char.strip(np.array(read_text(file).split("\n")))
            entries = entries[: len(entries) - (entries[-1] == "")]  # the end of the last line
            return _as_integers(entries) if file.stem == "target" else entries
        if file.suffix == ".pt":
            return load_tensors(file)
        with open_ordinary(file) as stream:
            if file.suffix == ".npy":
                return _read_array(stream, stream.seek(0, 2))
            return dict(_read_entries(stream))
    except (MemoryError, OSError):
        raise
    except Refused as error:
        raise ValueError(
            f"Expected {file} to be a readable {file.suffix} file of plain values, but got: {error}. "
            "Save tensors and lists of plain values (of a numpy array x.tolist()) in a .pt file, numpy arrays in .npy "
            "or .npz, and no other objects."
        ) from error


def _read_entries(stream: IO[bytes]) -> Iterator[tuple[str, np.ndarray]]:
    entries = _check_archive(stream)
    with zipfile.ZipFile(stream) as archive:
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if not _is_wanted(name):
                continue
            if name == entry.filename:
                raise Refused("an entry is no array (.npy)")
            with _unharmed("an entry is damaged"), archive.open(entry) as part:
                array = _read_array(part, entry.file_size)
            yield name, array


def _read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """An array in numpy's format, of which there are `size` bytes; compared with what its header declares."""
    check_header(stream, size)
    stream.seek(0)
    with _unharmed("an array is damaged"):
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=HEADER)
    return array


def check_header(stream: IO[bytes], size: int) -> None:
    """Read the header of an array in numpy's format, of which there are `size` bytes.

    Raises:
        Refused: it holds pickled objects, or the array has more or fewer bytes than it declares.
    """
    stream.seek(0)
    with _unharmed("pickled objects, or an array whose header does not read"):
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream, max_header_size=HEADER)
    if dtype.hasobject:
        raise Refused("pickled objects (an array of Python objects, such as sequences of several lengths: pad them)")
    declared = math.prod(shape) * dtype.itemsize
    if declared != size - stream.tell() or any(length < 0 for length in shape):
        raise Refused(f"an array declares {declared} bytes, and has {size - stream.tell()}")


@contextmanager
def _unharmed(reason: str) -> Iterator[None]:
    """Inside, whatever a reader stumbles over in a damaged file, where it can fail anywhere, is the reason."""
    try:
        yield
    except (Refused, MemoryError):
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place in the file that cannot be
            raise
        raise Refused(reason) from None
    except Exception:
        raise Refused(reason) from None


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
        if values.is_floating_point() and values.dtype not in (torch.float16, torch.float32, torch.float64):
            values = values.float()  # numpy has neither bfloat16 nor 8 bits
        return values.numpy()
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # rows of different lengths, numbers of any size
        array = np.empty((), dtype=object)
    if array.dtype == object:
        raise ValueError(
            f"Expected `{key}` in {path} to be an array of numbers or strings, "
            f"but got Python objects or rows of different lengths. Pad the rows to one shape."
        )
    if array.dtype.kind == "U" and array.size:
        points = np.ascontiguousarray(array).view(np.uint32)
        points = points if array.dtype.isnative else points.byteswap()
        if (points > 0x10FFFF).any() or ((points >= 0xD800) & (points < 0xE000)).any():
            raise ValueError(f"Expected `{key}` in {path} to be text, but got code points that are no characters.")
    return array
