"""Files of a run: each is written whole or not at all, and one process at a time writes into a folder."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agm.data._files import PARTIAL, replacing
from agm.training.errors import UserError

__all__ = ["check_no_link", "locked", "write_bytes", "write_text"]

PATIENCE = 5.0  # seconds: workers of a command that was killed find out, and end
_UNKNOWN = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_logger = logging.getLogger("agm")


def write_bytes(path: Path, content: bytes) -> None:
    """The file as a whole, in the place of one that is there."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """The same in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def check_no_link(folder: Path) -> None:
    """A folder that the program names itself may lie elsewhere only if the user put it there.

    Raises:
        UserError: it is a link.
    """
    if folder.is_symlink():
        raise UserError(
            f"Expected {str(folder)!r} to be a folder of a run, but got a link, which is not followed. Remove it, or "
            "choose another folder with --out."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside for this folder, which is made if it does not exist.

    What a process that was killed left half written is removed.

    Raises:
        UserError: another process is, and stays.
        OSError: the folder cannot be made or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)) if os.name == "posix" else None
    try:
        if number is not None:
            _lock(number, folder)
        for partial in folder.glob(f".*{PARTIAL}"):
            if partial.is_symlink() or partial.is_file():
                partial.unlink(missing_ok=True)
        yield
    finally:
        if number is not None:
            os.close(number)


def _lock(number: int, folder: Path) -> None:
    """A lock on the folder itself, which ends with the process however it ends, and leaves nothing behind."""
    import fcntl

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"Expected no other process to write into {str(folder)!r}, but got one that does. Wait for it or "
                    "end it, or choose another folder with --out."
                ) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            _logger.warning(f"The file system of {str(folder)!r} has no locks: let one process at a time write there.")
            return
