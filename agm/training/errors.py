"""Errors that the user can do something about: the command line prints them in one line, without a traceback."""

import os

__all__ = ["DivergedError", "UserError", "in_words"]


class UserError(ValueError):
    """A setting, a path or a run folder is not what the command needs; the message says what to do."""


class DivergedError(UserError):
    """The loss or the weights are not finite any more."""


def in_words(error: Exception) -> str:
    """The message of an error; of what the system says about a file, which file that is and what to do.

    >>> in_words(FileNotFoundError(2, "No such file or directory", "x.npz"))
    'Expected x.npz to be there for this command to use, but got: No such file or directory. Check the path.'
    """
    if isinstance(error, OSError) and isinstance(error.filename, (str, os.PathLike)) and error.strerror:
        place = os.fspath(error.filename)
        return f"Expected {place} to be there for this command to use, but got: {error.strerror}. Check the path."
    return str(error)
