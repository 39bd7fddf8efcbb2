"""The code blocks of the README and of every page of the documentation."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent

# Pages with blocks that a reader copies: a comment `<!-- not run: why -->` before a block leaves it out, and
# `<!-- run -->` before a bash block runs its agm commands, `<!-- run: --epochs 1 -->` with more options at their ends.
PAGES = sorted(
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "recipes" / "README.md",
        ROOT / "bench" / "README.md",
        ROOT / "agm" / "strategies" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
    if path.name != "command-line-reference.md"
)

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?:<!-- (?P<note>(?:not run|run)\b[^>]*?) -->\s*\n[ \t]*)?```(?P<language>\w+)[^\n]*\n"
    r"(?P<code>.*?)^[ \t]*```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block.

    Args:
        page: the file.
        line: of the first line of its code, from 1.
        language: as the fence has it.
        note: of the comment before it, or "".
        code: without its indentation.
    """

    page: Path
    line: int
    language: str
    note: str
    code: str

    @property
    def runs(self) -> bool:
        return not self.note.startswith("not run")

    def commands(self) -> Iterator[list[str]]:
        """The words of each line of a bash block, lines that end in a backslash joined, comments left out."""
        for line in self.code.replace("\\\n", " ").splitlines():
            for part in line.split(";"):
                if words := shlex.split(part, comments=True):
                    yield words


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text[: match.start("code")].count("\n") + 1,
            language,
            match["note"] or "",
            textwrap.dedent(match["code"]),
        )
        for match in _FENCE.finditer(text)
        if match["language"] == language
    ]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def place(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
