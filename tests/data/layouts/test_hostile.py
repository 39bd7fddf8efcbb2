"""Files that were made to harm: refused by size and by kind before their content is taken up."""

import io
import os
import resource
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from agm.data.layouts import load_pickle, open_layout
from agm.data.layouts.lists import read_json, read_rows, safe_name
from agm.data.layouts.pictures import read_image
from agm.data.layouts.sound import read_wave
from agm.data.layouts.stored import map_array, read_stored
from agm.data.layouts.tweets import Sarcasm

from . import trees, trees_more


@contextmanager
def little_memory(more: int = 512 * 2**20) -> Iterator[None]:
    """Inside, this process cannot get more than so many bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def png(width: int, height: int) -> bytes:
    """A picture of zeros, of which a gigabyte is a megabyte in the file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wav(frames: int) -> bytes:
    """A sound whose header declares more than there is."""
    size = frames * 2
    form = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
    head = b"RIFF" + struct.pack("<I", min(36 + size, 2**32 - 1)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", min(size, 2**32 - 1)) + bytes(2000)


def test_images_that_declare_too_much():
    pytest.importorskip("PIL")
    for width, height in ((60_000, 60_000), (10**6, 10**3), (2**31 - 1, 2**31 - 1)):
        with little_memory(), pytest.raises(ValueError, match=r"Expected x\.png to be an image that opens"):
            read_image(png(width, height), name="x.png")


def test_sounds_that_declare_too_much(tmp_path):
    pytest.importorskip("soundfile")
    path = tmp_path / "x.wav"
    path.write_bytes(wav(2**31 - 100))
    with little_memory():
        wave, rate = read_wave(path)  # what is there is read, whatever the header says
    assert (len(wave), rate) == (1000, 16000)


def test_pickles_that_declare_too_much(tmp_path):
    path = tmp_path / "x.pkl"
    for content in (
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
        b"B" + struct.pack("<I", 2**32 - 1) + b".",
    ):
        path.write_bytes(content)
        with little_memory(), pytest.raises(ValueError, match=r"Expected .*x\.pkl to be a pickle"):
            load_pickle(path)


def test_shared_lists_take_no_more_than_they_are(tmp_path):
    """Lists of lists, each of which holds the one before ten times: 10**18 items for whoever copies them."""
    content = b"\x80\x02]q\x00"
    for level in range(18):
        content += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
    path = tmp_path / "x.pkl"
    path.write_bytes(content + b".")
    with little_memory():
        made = load_pickle(path)
    assert made[0] is made[9]


def test_arrays_that_declare_too_much(tmp_path):
    header = str({"descr": "<f8", "fortran_order": False, "shape": (2**40, 8)}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100)
    (tmp_path / "x.npy").write_bytes(content)
    with little_memory(), pytest.raises(ValueError, match=r"Expected .*x\.npy to be an array .* an array declares"):
        map_array(tmp_path / "x.npy")


def test_matlab_files_that_declare_too_much(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    trees_more.unimib(tmp_path)
    whole = io.BytesIO()
    scipy_io.savemat(whole, {"acc_data": np.zeros((3, 453))})
    content = whole.getvalue().replace(struct.pack("<II", 3, 453), struct.pack("<II", 2**30, 453))
    (tmp_path / "data/acc_data.mat").write_bytes(content)
    with little_memory(), pytest.raises(ValueError, match=r"Expected .*acc_data\.mat to be a MATLAB file"):
        open_layout(tmp_path)


def test_hdf5_that_declares_too_much(tmp_path):
    h5py = pytest.importorskip("h5py")
    trees.ave(tmp_path)
    (tmp_path / "right_labels.h5").unlink()
    with h5py.File(tmp_path / "right_labels.h5", "w") as file:
        file.create_dataset("avadataset", (2**40, 10, 29), "i8", chunks=(1, 10, 29), compression="gzip")
    assert (tmp_path / "right_labels.h5").stat().st_size < 10_000
    with little_memory(), pytest.raises(ValueError, match=r"Expected `avadataset` in .* to fit into memory"):
        open_layout(tmp_path)


@pytest.mark.parametrize(
    "line", ["[" * 60_000, "-" * 60_000 + "1", "(" * 200 + ")" * 200, "{" * 3000 + "}" * 3000, "['a', 'b'"]
)
def test_lines_that_are_no_lists(line, tmp_path):
    pytest.importorskip("PIL")
    trees_more.sarcasm(tmp_path)
    (tmp_path / "train.txt").write_text(line + "\n")
    layout = Sarcasm(tmp_path, skip_bad=True)
    assert {skipped.reason for skipped in layout.skipped} == {"no list of an ID, a text and a label"}


def test_lists_that_are_none(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a," + "b" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"Expected .*x\.csv to be a list in CSV, but got"):
        list(read_rows(path))
    path.write_bytes(b"\xff\xfe\x00caf\xe9,b")
    with pytest.raises(ValueError, match=r"Expected .*x\.csv to be text"):
        list(read_rows(path))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"Expected .*x\.csv to be JSON"):
        read_json(path)
    for mark, coding in ((b"\xff\xfe", "utf-16-le"), (b"\xef\xbb\xbf", "utf-8")):
        path.write_bytes(mark + 'ü,"b,\r\n'.replace('"', "").encode(coding))
        assert list(read_rows(path, columns=2)) == [(1, ["ü", "b", ""])]


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "/etc/passwd", "a\0b", "..\\b", "C:\\b", "../a"])
def test_names_that_lead_elsewhere(name):
    assert not safe_name(name)


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "--4-0ihtnBU_000058_000068", "..a", "a..b"])
def test_names_that_stay(name):
    assert safe_name(name)


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pkl")
    os.mkfifo(tmp_path / "x.npy")
    os.mkfifo(tmp_path / "x.jpg")
    for read in (load_pickle, read_stored):
        with pytest.raises(ValueError, match="to be an ordinary file"):
            read(tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="to be an ordinary file"):
        map_array(tmp_path / "x.npy")
    pytest.importorskip("PIL")
    with pytest.raises(ValueError, match="to be an ordinary file"):
        read_image(tmp_path / "x.jpg")


def test_stored_tensors_with_code(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n(S'touch ran'\ntR.")
        archive.writestr("x/version", b"3\n")
    with pytest.raises(ValueError, match=r"Expected .*x\.pt to be a \.pt file of plain tensors"):
        read_stored(path)
