"""What mkdocstrings is to make of docstrings: an example is code, under whichever of its two headings."""

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(\s*)Example:[ \t]*$", re.MULTILINE)


class Examples(griffe.Extension):
    """`Example:` is read as `Examples:`, the heading whose `>>>` lines become code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _HEADING.sub(r"\1Examples:", obj.docstring.value)
