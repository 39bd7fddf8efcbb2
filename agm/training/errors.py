"""The error that the user can do something about: the command line prints it in one line, without a traceback."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A setting, a path or a run folder is not what the command needs; the message says what to do."""
