"""What mkdocstrings is to make of docstrings: an example is code, and a bound is no quotation."""

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(\s*)Example:[ \t]*$", re.MULTILINE)
_BOUND = re.compile(r"^(\s+[\w*][\w*, ]*: )>", re.MULTILINE)  # `beta: >= 0`


class Examples(griffe.Extension):
    """`Example:` is read as `Examples:`, the heading whose `>>>` lines become code; `>=` after an argument stays."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = _HEADING.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = _BOUND.sub(r"\1\\>", text)
