"""Pages that stand elsewhere in the repository, taken into the site with their links set right."""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

# File in the repository -> its place in the site.
PLACES = {
    "recipes/README.md": "recipes.md",
    "bench/results/cost.md": "benchmarks/index.md",
    "bench/README.md": "benchmarks/method.md",
    "bench/results/README.md": "benchmarks/tables.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

# Pictures that these pages show.
FILES = {
    f"bench/results/{path.name}": f"benchmarks/{path.name}" for path in sorted((ROOT / "bench/results").glob("*.png"))
}

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def pages() -> dict[str, str]:
    """Place in the site -> page."""
    return {place: _relinked(source, place) for source, place in PLACES.items()} | {"examples.md": _examples()}


def _examples() -> str:
    text = ["# Examples", ""]
    text += ["Scripts of at most 40 lines, each run by the tests. They stand in `examples/` of the repository.", ""]
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        text += [f"## {path.name}", "", "```python", source.rstrip(), "```", ""]
    return "\n".join(text)


def _relinked(source: str, place: str) -> str:
    """The text of a file, its links to other files pointing into the site; those to files outside it become code."""

    def moved(match: re.Match[str]) -> str:
        picture, text, link = match.groups()
        target, _, anchor = link.partition("#")
        if "://" in link or not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        found = _in_site(path)
        if found is None:
            return f"`{path}`" if text.strip("`") == path or picture else f"{text} (`{path}`)"
        start = posixpath.dirname(place)
        return f"{picture}[{text}]({posixpath.relpath(found, start or '.')}{'#' + anchor if anchor else ''})"

    return _LINK.sub(moved, (ROOT / source).read_text(encoding="utf-8"))


def _in_site(path: str) -> str | None:
    if path in PLACES or path in FILES:
        return PLACES.get(path) or FILES[path]
    if path.startswith("examples/") and path.count("/") == 1 and path.endswith(".py"):
        return f"examples.md#{posixpath.basename(path).replace('.', '').lower()}"
    return path.removeprefix("docs/") if path.startswith("docs/") and (ROOT / path).is_file() else None
