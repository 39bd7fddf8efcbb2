"""Puts back what a step had changed, also when an interrupt comes while that is being done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["all_or_nothing", "putting_back"]


class _Open(threading.local):
    undos: list[Callable[[], None]] | None = None


_open = _Open()


@contextmanager
def putting_back(put_back: Callable[[], None]) -> Iterator[None]:
    """Calls `put_back` in the end, also on errors; enter it before anything is changed.

    An interrupt (Ctrl-C) may arrive in the very lines that put things back. Then `put_back` runs once more when the
    step around it (`all_or_nothing`) has failed, so it must stand being run again after having been cut off.
    """
    undos, is_done = _open.undos, False

    def undo() -> None:
        nonlocal is_done
        if not is_done:
            put_back()
            is_done = True

    if undos is not None:
        undos.append(undo)
    try:
        yield
    finally:
        # What was cut off inside comes first: later it would put back what this one had changed.
        while undos is not None and undo in undos and undos[-1] is not undo:
            undos[-1]()
            undos.pop()
        undo()
        if undos is not None and undos and undos[-1] is undo:
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
