"""Pickles are read without running them: what numpy 1 and 2 and Python 2 and 3 write, and nothing else."""

import collections
import os
import pickle
import pickletools
import random
import struct

import numpy as np
import pytest

from agm.data.layouts import load_pickle

CONTENT = {
    "train": {
        "vision": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "names": np.array(["a", "bc"]),
        "bytes": np.array([b"a", b"bc"]),
        "objects": np.array([["x", 1], [None, 2.5]], dtype=object),
        "empty": np.zeros((0, 5)),
        "flags": np.array([True, False]),
    },
    "words": ["one", ("two", 3), {4, 5}, frozenset([6]), None, True, -(2**70), 1.5, b"\x00\xff", "ü"],
    "number": np.float64(2.5),
    "ordered": collections.OrderedDict(a=1, b=2),
    "grouped": collections.defaultdict(list, {"k": [1]}),
}


def same(left, right) -> bool:
    if isinstance(right, np.ndarray):
        return isinstance(left, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(right, dict):
        return type(left) is dict and list(left) == list(right) and all(same(left[key], right[key]) for key in right)
    if isinstance(right, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return left == right


def written(tmp_path, content: bytes):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_back(protocol, tmp_path):
    assert same(load_pickle(written(tmp_path, pickle.dumps(CONTENT, protocol=protocol))), CONTENT)


def test_names_of_numpy_1(tmp_path):
    content = pickle.dumps(np.arange(3.0), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert load_pickle(written(tmp_path, content)).tolist() == [0, 1, 2]


def test_texts_of_python_2(tmp_path):
    # {'caf\xe9': array([1.5])}, as Python 2 writes it: texts are bytes, the array's content too.
    content = (
        b"\x80\x02}q\x00U\x04caf\xe9q\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
        b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x01\x85q\x08cnumpy\ndtype\nq\tU\x02f8q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<"
        b"q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08" + struct.pack("<d", 1.5) + b"q\x0ftq\x10bs."
    )
    made = load_pickle(written(tmp_path, content))
    assert list(made) == ["caf\xe9"]
    assert made["caf\xe9"].tolist() == [1.5]


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Imports:
    def __reduce__(self):
        return __import__, ("this",)


class Sets:
    def __setstate__(self, state):
        raise AssertionError


HARMFUL = {
    "system": (pickle.dumps(Runs()), "posix.system"),
    "system in an array": (pickle.dumps(np.array([Runs()], dtype=object)), "posix.system"),
    "system, text protocol": (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
    "an old instance": (b"(S'touch ran'\nios\nsystem\n.", "INST"),
    "eval": (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
    "getattr": (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
    "numpy's loader": (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
    "numpy's runner": (b"cnumpy.testing._private.utils\nrunstring\n.", "runstring"),
    "import": (pickle.dumps(Imports()), "__import__"),
    "an object": (pickle.dumps(Sets()), "Sets"),
    "a list that is called": (b"cbuiltins\nlist\n(tR.", "a type that is called"),
    "a reader that is changed": (b"c_codecs\nencode\n}S'x'\nI1\nsb.", "a change of this reader"),
    "a type": (b"cnumpy\ndtype\n.", "a type as a value"),
    "records": (pickle.dumps(np.zeros(2, dtype=[("a", "i4")])), "another type"),
    "an extension": (b"\x82\x01.", "EXT1"),
    "another file": (b"Pplace\n.", "PERSID"),
    "a place that cannot be": (b"\x80\x02Nr\xff\xff\xff\x7f.", "a place in its memory"),
    "a length that cannot be": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "halfway"),
    "an array that is too large": (
        pickle.dumps(np.zeros(4), protocol=2).replace(b"K\x04\x85", b"K\x7f\x85"),
        "bytes are fewer",
    ),
    "depth": (b"]" * 5000 + b"a" * 4999 + b".", "deep"),
    "itself": (b"]q\x00h\x00a.", "hold themselves"),
    "a digit of a million": (b"I" + b"9" * 10**6 + b"\n.", "damaged"),
    "half": (pickle.dumps(CONTENT)[:500], "halfway"),
    "text": (b"hello, world\n", "makes other objects"),
    "nothing": (b"", "halfway"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_whatever_else_is_refused_and_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, reason = HARMFUL[name]
    with pytest.raises(ValueError, match=r"^Expected .*x\.pkl to be a pickle of numpy arrays.*, but got") as caught:
        load_pickle(written(tmp_path, content))
    assert reason in str(caught.value)
    assert "Nothing in it was run" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_flipped_bytes_harm_nothing(tmp_path):
    whole = pickle.dumps(CONTENT, protocol=4)
    source = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(source.randint(1, 4)):
            content[source.randrange(len(content))] = source.randrange(256)
        try:
            load_pickle(written(tmp_path, bytes(content)))
        except ValueError as error:
            assert "x.pkl" in str(error)  # noqa: PT017
            refused += 1
    assert 50 < refused < 300


def test_nothing_is_called_that_the_walk_did_not_see(tmp_path):
    """Every operation that calls is one of those that only our constructors answer."""
    calls = {operation.name for operation in pickletools.opcodes if "call" in operation.doc.lower()}
    from agm.data.layouts.pickles import _REFUSED

    assert calls - set(_REFUSED) <= {"REDUCE", "BUILD", "NEWOBJ", "GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
