"""Puts back what a step had changed, also when an interrupt comes while that is being done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["all_or_nothing", "putting_back"]


class _Open(threading.local):
    undos: list[Callable[[], None]] | None = None


_open = _Open()


@contextmanager
def putting_back(put_back: Callable[[], None]) -> Iterator[None]:
    """Calls `put_back` in the end, also on errors; enter it before anything is changed.

    An interrupt (Ctrl-C) may arrive in the very lines that put things back. When the step around it (`all_or_nothing`)
    has failed, `put_back` then runs once more, and after it those of whatever was entered before. It must stand that.
    In a compiled graph nothing interrupts.
    """
    undos = None if torch.compiler.is_compiling() else _open.undos
    if undos is not None:
        undos.append(put_back)
    try:
        yield
    finally:
        # What was cut off inside comes first: later it would put back what this one had changed.
        while undos and put_back in undos and undos[-1] is not put_back:
            undos.pop()()
        put_back()
        if undos and undos[-1] is put_back:
            undos.pop()


@contextmanager
def all_or_nothing(*put_back: Callable[[], None]) -> Iterator[None]:
    """Puts back everything that is open inside if what is inside raises anything, and calls `put_back` too."""
    outer = _open.undos
    _open.undos = undos = list(put_back)
    try:
        yield
    except BaseException:
        for undo in reversed(undos):
            undo()
        raise
    finally:
        _open.undos = outer
