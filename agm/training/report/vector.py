"""Figures as SVG inside a page: they take its colours, which change with its theme, and its font."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.dom import minidom

from agm.training.drawing import APART_COLOUR, COLOURS, JOINT, Panel, figure_of, svg_of

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["Drawing", "variable_of"]

# The page's own names for what the figures are drawn in (page.css).
_VARIABLES = {
    "#000000": "--ink",
    JOINT: "--ink",
    "#777777": "--axis",
    "#bbbbbb": "--axis",
    "#e8e8e8": "--grid",
    APART_COLOUR: "--muted",
    **{colour.lower(): f"--series-{place}" for place, colour in enumerate(COLOURS)},
}


def variable_of(colour: str) -> str:
    """The CSS variable of the page that a colour of `agm.training.drawing` stands for."""
    return _VARIABLES[colour.lower()]


class Drawing:
    """Draws the figures of one page; the names inside each SVG are its own."""

    def __init__(self) -> None:
        self._count = 0

    def panel(self, draw: Panel, label: str, width: float = 3.6, height: float = 2.6) -> Markup:
        """An `<svg>` element.

        Args:
            draw: what is on it.
            label: what it shows, for people who do not see it.
            width, height: in inches; the page scales it to the room that there is.
        """
        return self._svg(figure_of(draw, width, height), label, width)

    def _svg(self, figure: Figure, label: str, width: float) -> Markup:
        from markupsafe import Markup

        self._count += 1
        root = minidom.parseString(svg_of(figure)).documentElement
        assert root is not None
        for metadata in root.getElementsByTagName("metadata"):
            assert metadata.parentNode is not None
            metadata.parentNode.removeChild(metadata)
        for name in ("width", "height", "version", "xmlns", "xmlns:xlink"):
            if root.hasAttribute(name):
                root.removeAttribute(name)
        for element in [root, *root.getElementsByTagName("*")]:
            self._adapt(element)
        if width > 4:  # on a narrow screen it is moved, not shrunk until nobody can read it
            root.setAttribute("style", f"min-width: {4.5 * width:.0f}rem")
        root.setAttribute("role", "img")
        root.setAttribute("aria-label", label)
        return Markup(root.toxml())

    def _adapt(self, element: minidom.Element) -> None:
        prefix = f"f{self._count}-"
        for name, value in list((element.attributes or {}).items()):
            if name == "id":
                value = prefix + value
            elif name in ("href", "xlink:href"):
                value = value.replace("#", "#" + prefix)
                element.removeAttribute(name)
                name = "href"
            elif name == "clip-path":
                value = value.replace("url(#", "url(#" + prefix)
            elif name == "style":
                value = "; ".join(_styled(declaration) for declaration in value.split("; "))
            element.setAttribute(name, value)


def _styled(declaration: str) -> str:
    name, colon, value = declaration.partition(": ")
    if name == "font":  # the page's, in the size that was asked for
        return f"font-size: {value.split('px', 1)[0].split()[-1]}px"
    variable = _VARIABLES.get(value.lower())
    return declaration if variable is None else f"{name}{colon}var({variable})"
