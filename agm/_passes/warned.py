"""Warnings that name the line of the user's that has led here."""

import sys
import warnings
from types import FrameType

__all__ = ["warn"]


def warn(text: str) -> None:
    """Warns at the line that has called into this package, past torch's."""
    level, frame = 1, sys._getframe(0)
    outer: FrameType | None = frame
    while outer is not None and outer.f_globals.get("__name__", "").startswith(("agm.", "torch.")):
        outer, level = outer.f_back, level + 1
    warnings.warn(text, stacklevel=level)
