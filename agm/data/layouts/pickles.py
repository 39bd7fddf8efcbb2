"""Pickles of numpy arrays and plain containers, read without running anything that is in them.

A pickle is a program. This reader first walks through it and checks its operations and lengths; then it builds what
the program asks for by constructors of its own, which know arrays, dicts, lists, sets, texts, bytes and numbers. Any
other object that a pickle names is refused by that name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from agm.data._files import known_failure, memory, open_ordinary
from agm.data._reading import Refused

__all__ = ["load_pickle"]

_DTYPE = re.compile(r"[?bBhHiIlLqQefd]|[biuf][1248]|[SU][0-9]{1,7}|O8?")
_DEPTH = 64  # containers in each other at most
_LENGTHS = ("LONG1", "LONG4")
_REFUSED = ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER")


def load_pickle(path: Path) -> Any:
    """Arrays, dicts, lists, tuples, sets, texts, bytes and numbers that a pickle holds; Python 2's too.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it holds other objects, it is damaged or incomplete, or it is larger than this machine's memory.

    Source: the format is Python's own (`pickletools`); numpy's objects are those that numpy 1 and 2 write.
    """
    try:
        with open_ordinary(path, memory()) as file:
            _check_program(file)
            file.seek(0)
            return _resolved(_Unpickler(_Exact(file), encoding="latin1").load())
    except Refused as error:
        with open_ordinary(path) as file:
            reason = known_failure(file.read(200)) or str(error)
        raise ValueError(
            f"Expected {path} to be a pickle of numpy arrays, dicts, lists, texts and numbers, but got: {reason}. "
            "Nothing in it was run. Download it again, or save its arrays with numpy.savez where you trust it."
        ) from None


class _Exact:
    """A file whose reads never ask for more than is left, so that no length in a damaged pickle makes room first."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.size - self.file.tell():
            raise Refused("its end is missing: the download may have stopped halfway")
        return self.file.read(size)

    def readline(self) -> bytes:
        return self.file.readline(1 << 20)

    def tell(self) -> int:
        return self.file.tell()


def _check_program(file: IO[bytes]) -> None:
    """Refuse operations that make other objects, and lengths and places that cannot be, before anything is made."""
    steps = 0
    try:
        for operation, argument, _ in pickletools.genops(_Exact(file)):  # type: ignore[arg-type]  # reads like a file
            steps += 1
            code = operation.name
            if code in _REFUSED:
                raise Refused(f"the operation {code}, which makes other objects")
            if "PUT" in code and _whole(argument) > steps:
                raise Refused("a place in its memory that cannot be")
            if code in _LENGTHS and abs(_whole(argument)).bit_length() > 512:
                raise Refused("an integer of more than 512 bits")
    except (Refused, MemoryError, OSError):
        raise
    except Exception:
        raise Refused("no pickle, or one that is damaged or stops halfway") from None


def _whole(argument: object) -> int:
    return int(argument)  # type: ignore[call-overload]  # a text in old protocols


class _DType:
    """Stands for a numpy dtype: its code and byte order."""

    def __init__(self, code: Any) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise Refused("an array of another type than numbers, texts or objects")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise Refused("an array of records, or of a byte order that there is not")
        self.order = order

    @property
    def is_object(self) -> bool:
        return self.code[0] == "O"

    def made(self) -> np.dtype[Any]:
        return np.dtype(self.code if self.order == "|" else self.order + self.code)


class _Array:
    """Stands for a numpy array until all of it has been read."""

    def __init__(self) -> None:
        self.values: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: str) -> Any:
    if isinstance(shape, int):
        shape = (shape,)
    sizes = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
    if not isinstance(dtype, _DType) or not sizes or order not in ("C", "F"):
        raise Refused("an array without a proper type or shape")
    if dtype.is_object:
        if not isinstance(content, list) or len(content) != math.prod(shape):
            raise Refused("an array of objects whose number is wrong")
        return (content, shape, order)
    if isinstance(content, str):  # Python 2 writes bytes as text
        content = content.encode("latin1")
    made = dtype.made()
    if not isinstance(content, (bytes, bytearray)) or len(content) != math.prod(shape) * made.itemsize:
        raise Refused("an array whose bytes are fewer or more than its shape says")
    return np.frombuffer(content, dtype=made).reshape(shape, order=order)  # type: ignore[call-overload]


class _Constructor:
    """What a pickle may call. It has no state that a pickle could set."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a change of this reader")

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("a change of this reader")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    array = _Array()
    array.values = _array(content, dtype, shape, order)
    return array


def _scalar(dtype: Any, content: Any = b"") -> Any:
    if isinstance(dtype, _DType) and dtype.is_object:
        raise Refused("an object in the place of a number")
    return _array(content, dtype, (), "C").item()


def _encode(text: Any, coding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise Refused("a text in a coding of its own")
    return text.encode("latin1")


def _items(items: Any) -> Any:
    if not isinstance(items, (list, tuple)):
        raise Refused("a set or dict of something else than a list")
    return items


def _never(*_: Any) -> Any:
    raise Refused("a type that is called")


_NUMPY: dict[str, dict[str, Callable[..., Any]]] = {
    "multiarray": {"_reconstruct": _reconstruct, "scalar": _scalar},
    "numeric": {"_frombuffer": _frombuffer},
}
_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        (f"numpy.{core}.{module}", function): make
        for core in ("core", "_core")
        for module, functions in _NUMPY.items()
        for function, make in functions.items()
    },
    ("numpy", "dtype"): lambda code, *_: _DType(code),
    ("numpy", "ndarray"): _never,  # the first argument of _reconstruct
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): lambda items=(): dict(_items(items)),
    ("collections", "defaultdict"): lambda *_: {},
    ("builtins", "set"): lambda items=(): set(_items(items)),
    ("builtins", "frozenset"): lambda items=(): frozenset(_items(items)),
    ("builtins", "bytes"): lambda: b"",
    **{("builtins", kind): _never for kind in ("list", "dict", "int", "float")},  # what defaultdict is given
}
_CONSTRUCTORS = {name: _Constructor(make) for name, make in _MAKERS.items()}


def _constructor(module: str, name: str) -> _Constructor:
    made = _CONSTRUCTORS.get((module.replace("__builtin__", "builtins"), name))  # Python 2's name
    if made is None:
        raise Refused(f"the object {module}.{name}"[:120])
    return made


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _constructor(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference to another place")

    def load(self) -> Any:
        try:
            return super().load()
        except (Refused, MemoryError, OSError):
            raise
        except Exception:
            raise Refused("no pickle, or one that is damaged or stops halfway") from None


def _resolved(content: Any) -> Any:
    """The content with arrays in the place of what stands for them; each container once, however often it is met."""
    done: dict[int, Any] = {}
    kept: list[Any] = []  # so that no number of an object is given to another one meanwhile

    def resolve(value: Any, depth: int) -> Any:
        if isinstance(value, (_DType, _Constructor)):
            raise Refused("a type as a value")
        if not isinstance(value, (dict, list, tuple, set, frozenset, _Array)):
            return value
        if id(value) in done:
            return done[id(value)]
        if depth > _DEPTH:
            raise Refused(f"containers more than {_DEPTH} deep, or that hold themselves")
        kept.append(value)
        made: Any
        if isinstance(value, _Array):
            made = value.values
            if isinstance(made, tuple):
                items, shape, order = made
                made = np.empty(len(items), dtype=object)
                for place, item in enumerate(items):
                    made[place] = resolve(item, depth + 1)
                made = made.reshape(shape, order=order)
            if made is None:
                raise Refused("an array without content")
        elif isinstance(value, dict):
            made = {key: resolve(item, depth + 1) for key, item in value.items()}
        else:
            made = type(value)(resolve(item, depth + 1) for item in value)
        done[id(value)] = made
        return made

    try:
        return resolve(content, 0)
    except TypeError:
        raise Refused("a container of things that it cannot hold") from None
