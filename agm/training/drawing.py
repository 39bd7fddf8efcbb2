"""How pictures look, and how they are made and written: no global state of matplotlib, no window."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agm.training.printable import printable
from agm.training.writing import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "APART_COLOUR",
    "COLOURS",
    "JOINT",
    "Panel",
    "figure_of",
    "grid_of",
    "set_title",
    "styled",
    "svg_of",
    "write_figure",
]

Panel = Callable[["Axes"], None]  # draws into axes, title and all

# Okabe and Ito's palette, told apart under every common colour blindness.
JOINT = "#222222"
APART_COLOUR = "#999999"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.parse_math": False,  # a $ in a name is a $
}


def write_figure(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        figure.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())


def svg_of(figure: Figure) -> bytes:
    """The figure as a document of SVG without a background, its text as text."""
    content = io.BytesIO()
    # A salt, so that the names inside are the same whenever the figure is.
    with _matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "agm"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return content.getvalue()


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(draw)
    def drawn(*arguments: Any) -> Figure:
        matplotlib = _matplotlib()
        with matplotlib.rc_context(STYLE):
            return draw(*arguments)

    return drawn


def _matplotlib() -> Any:
    """The package, whose import fails where MPLBACKEND names a backend that is not installed, a notebook's say."""
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib

        return matplotlib
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named


@styled
def figure_of(panel: Panel, width: float = 3.6, height: float = 2.6) -> Figure:
    """A figure of one panel; width and height in inches."""
    figure, grid = grid_of(1, 1, width, height)
    panel(grid[0][0])
    return figure


def grid_of(
    rows: int, columns: int, width: float, height: float, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    # A Figure of its own instead of pyplot: no global state, no window, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).tolist()


def set_title(figure: Figure, title: str) -> None:
    figure.suptitle(printable(title), x=0.008, horizontalalignment="left")
