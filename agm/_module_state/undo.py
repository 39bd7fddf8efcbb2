"""Puts back what a step had changed, also when an interrupt comes while that is being done."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["Contexts", "all_or_nothing", "opened", "putting_back"]


class _Open(threading.local):
    undos: list[Callable[[], None]] | None = None


opened = _Open()


class _PuttingBack:
    # No generator: one that an interrupt passes over would put back when it is collected, long afterwards.
    def __init__(self, put_back: Callable[[], None], begin: Callable[[], None] | None, eager: bool) -> None:
        self._put_back = put_back
        self._begin = begin
        self._eager = eager
        self._undos: list[Callable[[], None]] | None = None

    def __enter__(self) -> None:
        self._undos = opened.undos if self._eager or not torch.compiler.is_compiling() else None
        if self._undos is not None:
            self._undos.append(self._put_back)
        if self._begin is not None:
            try:
                self._begin()
            except BaseException:
                self.__exit__()
                raise

    def __exit__(self, *error: object) -> None:
        undos, put_back = self._undos, self._put_back
        # What was cut off inside comes first: later it would put back what this one had changed.
        while undos and put_back in undos and undos[-1] is not put_back:
            undos.pop()()
        put_back()
        if undos and undos[-1] is put_back:
            undos.pop()


def putting_back(
    put_back: Callable[[], None], begin: Callable[[], None] | None = None, eager: bool = False
) -> AbstractContextManager[None]:
    """Calls `begin` first and `put_back` in the end, also on errors.

    An interrupt (Ctrl-C) may arrive in the very lines that put things back. When the step around it (`all_or_nothing`)
    has failed, `put_back` then runs once more, and after it those of whatever was entered before. It must stand that.
    In a compiled graph nothing interrupts.

    Args:
        put_back: undoes what has been changed inside.
        begin: changes something; what is changed inside may also be changed behind.
        eager: whether the caller knows that nothing is compiled.
    """
    return _PuttingBack(put_back, begin, eager)


class Contexts:
    """Several contexts as one, entered in their order and left in the opposite one.

    Args:
        make: each makes one, when those before it have been entered.
    """

    def __init__(self, *make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[object]] = []

    def __enter__(self) -> None:
        try:
            for make in self._make:
                context = make()
                context.__enter__()
                self._entered.append(context)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, *error: Any) -> None:
        while self._entered:
            self._entered.pop().__exit__(*error)


class _AllOrNothing:
    def __init__(self, put_back: Sequence[Callable[[], None]]) -> None:
        self._undos = list(put_back)
        self._outer: list[Callable[[], None]] | None = None

    def __enter__(self) -> None:
        self._outer = opened.undos
        if self._outer is not None:
            self._outer.append(self._undo)  # for an interrupt at the end of this one
        opened.undos = self._undos

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is not None:
                self._undo()
        finally:
            opened.undos = self._outer
            if self._outer is not None:
                self._outer.remove(self._undo)

    def _undo(self) -> None:
        for undo in reversed(self._undos):
            undo()


def all_or_nothing(*put_back: Callable[[], None]) -> AbstractContextManager[None]:
    """Puts back everything that is open inside if what is inside raises anything, and calls `put_back` too."""
    return _AllOrNothing(put_back)
