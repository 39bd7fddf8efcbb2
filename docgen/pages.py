"""All pages that are made from the code."""

from docgen import included, methods, reference

__all__ = ["generated"]


def generated() -> dict[str, str]:
    """Place in the site -> page."""
    return {**methods.pages(), **reference.pages(), **included.pages()}
