"""Text of others on terminals and in tables: names may hold line breaks, escapes and what a terminal cannot show."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

__all__ = ["cell", "printable", "quiet_streams"]

# What the terminal obeys or what turns the direction of text, beside what Unicode calls control characters.
_KINDS = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")
_LIKE = {"±": "+-", "…": "...", "–": "-", "—": "-", "×": "x", "µ": "u", "•": "*", "’": "'", "“": '"', "”": '"'}
_HANDLER = "agm.like"


def printable(text: object) -> str:
    """The text on one line, with escapes written out: a line break is \\n, an escape \\x1b."""
    return "".join(_escaped(c) if unicodedata.category(c) in _KINDS else c for c in str(text))


def cell(text: object) -> str:
    """The same for a cell of a Markdown table."""
    return printable(text).replace("|", "\\|")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


@contextmanager
def quiet_streams() -> Iterator[None]:
    """Inside, this process's output never fails.

    A character that the encoding lacks is written as one like it, or as a question mark; and where nobody reads what is
    written (a closed pipe, a full disk), the command goes on without.
    """
    codecs.register_error(_HANDLER, _like)
    given = {name: getattr(sys, name) for name in ("stdout", "stderr") if getattr(sys, name) is not None}
    errors = {name: getattr(stream, "errors", None) for name, stream in given.items()}
    try:
        for name, stream in given.items():
            _reconfigure(stream, _HANDLER)
            setattr(sys, name, _Quiet(stream))
        yield
    finally:
        for name, stream in given.items():
            getattr(sys, name).flush()
            _reconfigure(stream, errors[name])
            setattr(sys, name, stream)


def _reconfigure(stream: IO[str], errors: str | None) -> None:
    with suppress(AttributeError, OSError, ValueError):  # no text stream, a closed one, one that nobody reads
        stream.reconfigure(errors=errors)  # type: ignore[attr-defined]


class _Quiet:
    """A stream that swallows what cannot be written."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _drop(stream: IO[str]) -> None:
    """What could not be written would be tried again, and complained of, when the interpreter ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _like(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    found = ""
    for character in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
        found += _LIKE.get(character) or plain or "?"
    return found, error.end
