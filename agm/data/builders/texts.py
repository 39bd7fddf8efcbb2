"""Texts as arrays of UTF-8 of a length that bounds them all."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np

__all__ = ["plain", "utf8"]


def plain(text: str) -> str:
    """Text in Unicode's composed form, on one line, without control characters."""
    text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in unicodedata.normalize("NFC", text))
    return " ".join(text.split())


def utf8(texts: Iterable[str], length: int) -> np.ndarray:
    """(N,) strings of at most `length` bytes; longer ones end at the last whole character that fits."""
    return np.array([_cut(text, length) for text in texts], dtype=f"S{length}")


def _cut(text: str, length: int) -> bytes:
    return text.encode("utf-8")[:length].decode("utf-8", "ignore").encode("utf-8")
