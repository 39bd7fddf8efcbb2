"""What a page is made of: tables, figures, and sections that are linked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Cell", "Figures", "Grid", "number", "percent"]


@dataclass(frozen=True)
class Cell:
    """A field of a table that is more than its text.

    Args:
        text: its lines.
        link: name of a place in the page that it leads to.
        anchor: name of its own place.
        strong: whether it is in bold.
        shade: from -1 to 1, which colours it; None for no colour.
    """

    text: tuple[str, ...]
    link: str = ""
    anchor: str = ""
    strong: bool = False
    shade: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table.

    Args:
        head: names of its columns.
        rows: the first field of each is its name; a row of one field is the heading of those that follow.
        note: what its figures are, below it.
    """

    head: tuple[Cell | str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Small multiples with one key.

    Args:
        key: (name, CSS variable of its colour).
        drawings: `<svg>` elements.
        note: below them.
        wide: whether each needs the width of the page.
    """

    key: tuple[tuple[str, str], ...]
    drawings: tuple[Markup, ...]
    note: str = ""
    wide: bool = False


def percent(share: float | None, sign: bool = False) -> str:
    """A share in percent, with one decimal; empty for none."""
    if share is None:
        return ""
    rounded = round(100 * share, 1) + 0.0  # and not -0.0
    return f"{rounded:{'+' if sign else ''}.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """Empty for none."""
    return "" if value is None else f"{value:.{digits}f}"
