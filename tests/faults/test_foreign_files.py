"""Datasets and checkpoints that others made: refused by size and type, by name, before their content is taken up."""

import io
import os
import random
import resource
import struct
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agm import data as datasets
from agm.training.checkpoint import load_checkpoint, save_checkpoint
from agm.training.errors import UserError

from .conftest import SOAK, arrays

SECRET = "correct horse battery staple"


@contextmanager
def little_memory(more: int = 512 * 2**20) -> Any:
    """Inside, this process cannot get more than so many bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def npy(shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"") -> bytes:
    """An array whose header declares what its content may not have."""
    header = str({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def archive(place: Path, entries: list[tuple[str, bytes]], name: str = "x.npz") -> Path:
    with zipfile.ZipFile(place / name, "w", zipfile.ZIP_DEFLATED) as file:
        for entry, content in entries:
            file.writestr(entry, content)
    return place / name


def _declares(*shape: int) -> Callable[[Path], Path]:
    return lambda place: archive(place, [*_whole("a"), ("a.npy", npy(shape))])


def _whole(*without: str) -> list[tuple[str, bytes]]:
    entries = []
    for name, values in arrays().items():
        if name not in without:
            content = io.BytesIO()
            np.save(content, values)
            entries.append((f"{name}.npy", content.getvalue()))
    return entries


def _lying(place: Path) -> Path:
    """A directory of entries that says nine gigabytes of a kilobyte."""
    path = _declares(48, 3)(place)
    content = bytearray(path.read_bytes())
    where = content.rindex(b"PK\x01\x02")
    content[where + 24 : where + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(bytes(content))
    return path


def _twice(place: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return archive(place, [*_whole(), *_whole()])


def _pickled(place: Path) -> Path:
    np.savez(place / "x.npz", **{**arrays(), "a": np.array([object()] * 48, dtype=object)})
    return place / "x.npz"


def _secret(ending: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / f"x{ending}").write_text(SECRET + "\n" + SECRET)
        return place / f"x{ending}"

    return make


def _tensors(**changed: Any) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        held = {"a": torch.randn(48, 3), "target": torch.arange(48) % 3, "split": arrays()["split"].tolist()}
        torch.save({**held, **changed}, place / "x.pt")
        return place / "x.pt"

    return make


def _folder(**files: bytes) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / "x").mkdir()
        for entry, content in [*_whole(), *files.items()]:
            (place / "x" / entry).write_bytes(content)
        return place / "x"

    return make


def _fifo(place: Path) -> Path:
    path = _folder()(place)
    (path / "b.npy").unlink()
    os.mkfifo(path / "b.npy")
    return path


def _linked_device(place: Path) -> Path:
    (place / "x.npz").symlink_to("/dev/zero")
    return place / "x.npz"


WRONG: dict[str, Callable[[Path], Path]] = {
    "declares 9 GiB": _declares(48, 50_000_000),
    "declares 87 TiB": _declares(48, 500_000_000_000),
    "declares more than there are numbers": _declares(2**40, 2**40),
    "declares less than nothing": _declares(-1, 3),
    "declares too little": lambda place: archive(place, [*_whole("a"), ("a.npy", npy((48, 1), content=b"\0" * 999))]),
    "a directory that lies": _lying,
    "two of a name": _twice,
    "objects": _pickled,
    "no array": lambda place: archive(place, [*_whole(), ("README", b"hello")]),
    "no header": lambda place: archive(place, [*_whole("a"), ("a.npy", SECRET.encode())]),
    "a header without end": lambda place: archive(place, [*_whole("a"), ("a.npy", npy((48, 3))[:30])]),
    "text as npz": _secret(".npz"),
    "text as pt": _secret(".pt"),
    "characters that are none": lambda place: archive(
        place, [*_whole("target"), ("target.npy", npy((48,), "<U1", struct.pack("<48I", *[0x11_0000] * 48)))]
    ),
    "halves of characters": lambda place: archive(
        place, [*_whole("target"), ("target.npy", npy((48,), "<U1", struct.pack("<48I", *[0xD800] * 48)))]
    ),
    "a modality with an escape": lambda place: archive(
        place, [*_whole("a"), ("\x1b[31ma.npy", dict(_whole())["a.npy"])]
    ),
    "a modality of two lines": lambda place: archive(place, [*_whole("a"), ("a\nb.npy", dict(_whole())["a.npy"])]),
    "an expanded tensor": _tensors(a=torch.zeros(1, 1).expand(48, 10**9)),
    "a conjugate tensor": _tensors(a=torch.zeros(48, 3, dtype=torch.complex64).conj()),
    "a negated tensor": _tensors(a=torch.zeros(48, 3, dtype=torch.complex64).conj().imag),
    "a sparse tensor": _tensors(a=torch.eye(48).to_sparse()),
    "a nested tensor": _tensors(a=torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])),
    "a pipe": _fifo,
    "a device": _linked_device,
    "bytes that are no text": _folder(**{"class_names.txt": b"ash\n\xff\xfe\xfd\n"}),
}


@pytest.mark.filterwarnings("ignore:.*nested.*")
@pytest.mark.parametrize("kind", WRONG)
def test_a_dataset_that_is_none(kind: str, tmp_path: Path) -> None:
    path = WRONG[kind](tmp_path)
    with little_memory(), pytest.raises((ValueError, TypeError)) as caught:
        datasets.load(path)
    said = str(caught.value)
    assert SECRET not in said
    assert len(said) < 500
    assert "\x1b" not in said
    if "modality" not in kind:
        assert str(path) in said or path.name in said


def test_a_dataset_as_people_make_them(tmp_path: Path) -> None:
    """Uncompressed, compressed, with a mark and Windows line ends, as a folder and as a dict of tensors."""
    np.savez(tmp_path / "plain.npz", **arrays())
    np.savez_compressed(tmp_path / "small.npz", **{**arrays(), "b": np.zeros((48, 10_000), "f4")})
    assert datasets.load(tmp_path / "plain.npz").modalities == ("a", "b")
    assert datasets.load(tmp_path / "small.npz").train.inputs["b"].shape == (32, 10_000)
    text = ("\r\n".join(["ash", "fir", "oak"][t] for t in arrays()["target"]) + "\r\n").encode("utf-16")
    folder = _folder(**{"target.txt": text, "class_names.txt": "ash\nfir\noak\n".encode("utf-8-sig")})(tmp_path)
    (folder / "target.npy").unlink()
    found = datasets.load(folder)
    assert found.class_names == ("ash", "fir", "oak")
    assert found.train.target.tolist() == arrays()["target"][:32].tolist()
    path = _tensors(a=torch.ones(96, 3)[::2])(tmp_path)  # every other row of a larger one
    assert datasets.load(path).train.inputs["a"].shape == (32, 3)


def _bomb(path: Path) -> None:
    """Five megabytes that become five gigabytes."""
    save_checkpoint(path, {"model": {"x": torch.zeros(10)}})
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry, content in entries.items():
            file.writestr(entry, content if "data/0" not in entry else b"\0" * 50_000_000)


def _expanded(path: Path) -> None:
    save_checkpoint(path, {"model": {"x": torch.zeros(1).expand(10**10)}})


def _strange(path: Path) -> None:
    save_checkpoint(path, {"model": {"x": torch.eye(4).to_sparse()}})


def _cut(path: Path) -> None:
    save_checkpoint(path, {"model": {"x": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("spoil", [_bomb, _expanded, _strange, _cut, os.mkfifo, lambda path: path.write_text(SECRET)])
def test_a_checkpoint_that_is_none(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    spoil(path)
    with little_memory(), pytest.raises(UserError, match=r"checkpoint.pt") as caught:
        load_checkpoint(path)
    assert SECRET not in str(caught.value)


def test_bytes_at_random(tmp_path: Path) -> None:
    """A file of which some bytes were changed loads, with values of the right kind, or is refused."""
    np.savez_compressed(tmp_path / "whole.npz", **arrays())
    _tensors()(tmp_path)
    chance, refused = random.Random(0), 0
    files = [(tmp_path / "whole.npz").read_bytes(), (tmp_path / "x.pt").read_bytes()]
    for number in range(120 * SOAK):
        content = bytearray(files[number % 2])
        for _ in range(chance.choice([1, 1, 3, 20])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.2:
            del content[chance.randrange(len(content)) :]
        path = tmp_path / f"spoiled{('.npz', '.pt')[number % 2]}"
        path.write_bytes(bytes(content))
        try:
            found = datasets.load(path)
        except (ValueError, TypeError):
            refused += 1
            continue
        assert all(values.dtype == torch.float32 for values in found.train.inputs.values())
    assert refused > 60 * SOAK
