"""Where the rows of a batch lie in a tensor, and what is raised where that is no longer known."""

import math
import operator
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from agm._module_state.undo import putting_back

__all__ = ["Layout", "Meeting", "Mode", "RowCount", "Unsplit", "reshaped", "telling_rows"]


class Unsplit(Exception):
    """A batch cannot be told apart into train rows and eval rows any more, for a reason that is told in words."""


class Meeting(Unsplit):
    """Rows of the batch may meet in a function."""


class Layout(NamedTuple):
    """Where the rows of a batch lie in a tensor.

    Its dimension `dim` has `outer` * rows * inner elements: blocks of all rows, in which each row has several elements
    side by side. Elements of other dimensions belong to the row at their place in this one.
    """

    dim: int
    outer: int = 1


def reshaped(shape: Sequence[int], layout: Layout, into: Sequence[int], rows: int) -> Layout:
    """The layout of a tensor after its elements have been laid out anew in their order.

    Args:
        shape: before.
        layout: before.
        into: the shape afterwards.
        rows: of the batch, at least 2.

    Raises:
        Unsplit: a row no longer lies in one dimension.
    """
    before = math.prod(shape[: layout.dim]) * layout.outer  # elements that come before the rows, in the order of all
    passed = 1
    for dim, size in enumerate(into):
        if passed > before or size == 0:
            break
        outer, rest = divmod(before, passed)
        if not rest and size % (outer * rows) == 0:
            return Layout(dim, outer)
        passed *= size
    raise Meeting(f"it reshapes {tuple(shape)} to {tuple(into)}, across rows")


class _Pass(threading.local):
    read: Callable[[], None] | None = None
    fail: Callable[[Unsplit], Unsplit] = staticmethod(lambda error: error)


_pass = _Pass()


def telling_rows(read: Callable[[], None], fail: Callable[[Unsplit], Unsplit]) -> AbstractContextManager[None]:
    """Inside, the number of rows is no number; what is left of it elsewhere is one.

    Args:
        read: is called where code takes it for a number without calculating with it (as `int(x.shape[0])` does).
        fail: notes what is raised, which code may catch.
    """
    before = _pass.read, _pass.fail

    def tell() -> None:
        _pass.read, _pass.fail = read, fail

    def put_back() -> None:
        _pass.read, _pass.fail = before

    return putting_back(put_back, tell)


class RowCount(torch.SymInt):
    """How many rows there are: a size that may be used as a size, but not as a number.

    Sums, products and quotients of it are such sizes too. Two of them can be compared; whatever else would depend on
    the number raises `Unsplit` or tells that it is read, until the pass is over. It is no `int`: what is written in C
    (`1.0 / count`, `math.log`, `range`) would take the number out of one without asking.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        if _pass.read is not None:
            _pass.read()
        return self.number

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(int(self))

    def __repr__(self) -> str:
        return repr(int(self))

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(int(self), spec)


def _plain(value: Any) -> Any:
    return value.number if isinstance(value, RowCount) else value


def _size(name: str) -> Callable[..., Any]:
    def operator(self: RowCount, other: Any) -> Any:
        if not isinstance(other, (int, RowCount)):
            return _number(name)(self, other)
        value = getattr(int, name)(self.number, _plain(other))
        return RowCount(value) if _pass.read is not None else value

    return operator


def _compared(name: str) -> Callable[..., Any]:
    def operator(self: RowCount, other: Any) -> Any:
        return (
            getattr(int, name)(self.number, other.number) if isinstance(other, RowCount) else _number(name)(self, other)
        )

    return operator


def _number(name: str) -> Callable[..., Any]:
    def operator(self: RowCount, *others: Any) -> Any:
        if _pass.read is not None:
            raise _pass.fail(Unsplit("it calculates with the number of rows, which is another one in one pass"))
        return getattr(self.number, name)(*map(_plain, others))

    return operator


for _kind, _names in (
    (_size, "add sub mul floordiv mod radd rmul"),
    (_compared, "eq ne"),
    (
        _number,
        "lt le gt ge bool truediv rtruediv rfloordiv rsub rmod pow rpow float neg pos abs invert divmod rdivmod and "
        "rand or ror xor rxor lshift rlshift rshift rrshift round trunc floor ceil complex",
    ),
):
    for _name in _names.split():
        setattr(RowCount, f"__{_name}__", _kind(f"__{_name}__"))


class Mode:
    """What a module has for `training` in one pass: true, and told to `read` wherever code asks.

    What code hands on without asking (`F.dropout(x, 0.1, self.training)`) stays one. It is no number, since what is
    written in C (`0.5 * self.training`, `min`) would take the value out of one without asking.
    """

    read: Callable[[], None]

    @classmethod
    def telling(cls, read: Callable[[], None]) -> "Mode":
        """A mode that calls `read` when it is read."""
        mode = cls()
        mode.read = read
        return mode

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` asks for in a user's code."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith(("agm.", "torch.")):
            return Mode
        self.read()
        return bool

    def __bool__(self) -> bool:
        self.read()
        return True

    def __repr__(self) -> str:
        self.read()
        return "True"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        self.read()
        return format(True, spec)


def _as_true(operator: Callable[..., Any], backwards: bool = False) -> Callable[..., Any]:
    def method(self: Mode, *others: Any) -> Any:
        self.read()
        return operator(*others, True) if backwards else operator(True, *others)

    return method


_ALONE = (int, float, complex, hash, round, operator.neg, operator.pos, operator.abs, operator.invert, operator.index)
_BINARY: tuple[str, ...] = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "matmul",
)
for _function in (*_ALONE, math.trunc, math.floor, math.ceil):
    setattr(Mode, f"__{_function.__name__}__", _as_true(_function))
for _name in (*_BINARY, "divmod"):
    _operation: Any = divmod if _name == "divmod" else getattr(operator, f"__{_name}__")
    setattr(Mode, f"__{_name}__", _as_true(_operation))
    setattr(Mode, f"__r{_name}__", _as_true(_operation, backwards=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Mode, f"__{_name}__", _as_true(getattr(operator, _name)))
