"""Files of others are read only if they are ordinary and not too large; own ones are written whole or not at all."""

from __future__ import annotations

import codecs
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["LARGEST_TEXT", "PARTIAL", "known_failure", "memory", "open_ordinary", "read_text", "replacing", "text_of"]

LARGEST_TEXT = 64 * 2**20  # bytes of labels, settings, results
PARTIAL = ".partial"  # what the names of files that are being written end in

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@contextmanager
def open_ordinary(path: Path, largest: int | None = None) -> Iterator[IO[bytes]]:
    """A file to read: no pipe, device or folder, which could hold up the process without end.

    Args:
        path: its place; links are followed.
        largest: its size in bytes at most; None for any.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not ordinary, or too large.
    """
    # Without waiting for somebody who writes into a pipe, and without taking a terminal for this process's own.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | _BINARY)
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):  # before it is opened: of a folder that fails, and names the number alone
        os.close(number)
        raise ValueError(f"Expected {path} to be an ordinary file, but got a pipe, a device or a folder. Copy it.")
    with open(number, "rb") as file:
        if largest is not None and found.st_size > largest:
            raise ValueError(
                f"Expected {path} to have {largest} bytes at most, but got {found.st_size}. Is it the right file?"
            )
        yield file


def known_failure(head: bytes) -> str:
    """What a file is that a download left in the place of another, by its first bytes; "" for nothing known."""
    if not head:
        return "an empty file: the download may have stopped halfway"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs: fetch the files with git lfs pull"
    if re.match(rb"\s*<(!doctype html|html)", head[:100], re.IGNORECASE):
        return "a page of the web, such as a question before the download"
    return ""


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Text in UTF-8, or UTF-16 with a byte order mark; without the mark, lines end in a line feed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not ordinary, too large, or not such text.
    """
    with open_ordinary(path, largest) as file:
        return text_of(path, file.read())


def text_of(path: Path, content: bytes) -> str:
    """As `read_text`, of the file's content."""
    coding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(coding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected {path} to be text in UTF-8, but byte {error.start} is none of it. Store it as UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write, which takes the place of `path` when the block ends without an error.

    Until then it has a name of its own, that nobody can foresee and lay a link at. It takes the place of a link, not of
    what the link leads to.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}{PARTIAL}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | _BINARY
    with open(os.open(partial, flags, 0o666), "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def memory() -> int:
    """Bytes of this machine's memory; a number that nothing exceeds where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**62


_BINARY = getattr(os, "O_BINARY", 0)
