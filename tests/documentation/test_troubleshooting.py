"""Whatever agm refuses, the first words of the message are on the page that says more."""

import ast
import re
from collections.abc import Iterator

from .blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
# What a user meets; other exceptions are reasons that end up inside such a message.
_KINDS = {
    "ValueError", "TypeError", "RuntimeError", "ImportError", "ModuleNotFoundError", "FileNotFoundError",
    "UserError", "DivergedError", "SpeechError",
}  # fmt: skip


def _text(node: ast.AST) -> str:
    """A message with … in the place of what is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def _messages() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "agm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                function = node.exc.func
                if isinstance(function, ast.Name) and function.id in _KINDS:
                    yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", _text(node.exc.args[0])


def _first_words() -> list[str]:
    table = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    found = [pair for cell in table for pair in re.findall(r"``\s?(.+?)\s?``|`([^`]+)`", cell)]
    return [double or single for double, single in found]


def _is_found(message: str, known: list[str]) -> bool:
    """Whether the page has it; what begins with what is put into it says there what it is about."""
    if message.startswith(("…", "Expected …", "Expected the …")) or (
        message[0].islower() and not message.startswith("agm.")
    ):
        return True
    return any(re.match(re.escape(words) + r"\b" * words[-1].isalnum(), message) for words in known)


def test_first_words_lead_somewhere() -> None:
    known, messages = _first_words(), list(_messages())
    assert len(messages) > 300
    lost = [f"{where}: {message[:60]}" for where, message in messages if not _is_found(message, known)]
    assert lost == [], "add their first words to docs/troubleshooting.md"


def test_unknown_words_are_not_found() -> None:
    assert not _is_found("Expectation missed", _first_words())
    assert not _is_found("Expected nothing of the kind", _first_words())
