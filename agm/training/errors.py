"""Errors that the user can do something about: the command line prints them in one line, without a traceback."""

__all__ = ["DivergedError", "UserError"]


class UserError(ValueError):
    """A setting, a path or a run folder is not what the command needs; the message says what to do."""


class DivergedError(UserError):
    """The loss or the weights are not finite any more."""
