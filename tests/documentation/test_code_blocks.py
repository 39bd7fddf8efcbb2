"""Every code block of the README and the documentation runs; every command in them is one that there is."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from agm.training.cli import cli, run

from .blocks import ROOT, Block, blocks, pages_with, place
from .names import names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block writes lands in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def _compiled(block: Block) -> Any:
    return compile("\n" * (block.line - 1) + block.code, str(block.page), "exec", dont_inherit=True)


@pytest.mark.parametrize("page", pages_with("python"), ids=place)
def test_blocks_run(page: Path) -> None:
    """The python blocks of a page one after the other, as a reader would, and the commands that it wants run."""
    torch.manual_seed(0)
    space: dict[str, Any] = {"__name__": "page", **names(place(page))}
    everything = blocks(page, "python") + blocks(page, "bash")
    for block in sorted(everything, key=lambda block: block.line):
        if block.language == "python":
            code = _compiled(block)
            if block.runs:
                exec(code, space)
        elif block.note.startswith("run"):
            _run(block)


@pytest.mark.parametrize("page", [page for page in pages_with("bash") if not blocks(page, "python")], ids=place)
def test_commands_of_pages_without_python_run(page: Path) -> None:
    for block in blocks(page, "bash"):
        if block.note.startswith("run"):
            _run(block)


def _run(block: Block) -> None:
    more = block.note.removeprefix("run").lstrip(":").split()
    for words in block.commands():
        assert words[0] == "agm", f"{place(block.page)}:{block.line}: only agm commands are run"
        extra = more if words[1] in ("train", "compare", "tune", "competition") else []
        assert run([*words[1:], *extra]) == 0, f"{place(block.page)}:{block.line}: {' '.join(words)}"


def _commands(first: str) -> Iterator[tuple[str, list[str]]]:
    for page in pages_with("bash"):
        for block in blocks(page, "bash"):
            for words in block.commands():
                if words[0] == first:
                    yield f"{place(page)}:{block.line}", words


def test_agm_commands_parse() -> None:
    """With the parser itself, which knows every option and the type of its value."""
    found = list(_commands("agm"))
    assert len(found) > 30
    for where, words in found:
        words = [word for word in words[1:] if word not in ("...", "[NAME]")]
        command: click.Command = cli
        context = click.Context(cli, info_name="agm")
        while isinstance(command, click.Group):
            name, *words = words
            assert name in command.commands, f"{where}: agm has no command {name}"
            command = command.commands[name]
        try:
            command.make_context(command.name, words, parent=context)
        except click.ClickException as error:
            pytest.fail(f"{where}: {error.format_message()}")


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {word for _, words in _commands("make") for word in words[1:] if "=" not in word}
    assert used
    assert used <= targets


def test_extras_exist() -> None:
    """Those that pages tell to install, under the name of the distribution."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages_with("bash"))
    used = {extra for match in re.findall(r"(?:agm-torch|\.)\[([\w,-]+)\]", text) for extra in match.split(",")}
    assert used
    assert used <= project["optional-dependencies"].keys()


def test_scripts_exist() -> None:
    for where, words in _commands("python"):
        script = next(word for word in words[1:] if not word.startswith("-"))
        if words[1] != "-m":
            assert (ROOT / script).exists(), where


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: two GPUs -->\n```python\n1 / 0\n```\n\n  ```python\n  x = 1\n  ```\n", encoding="utf-8"
    )
    left_out, found = blocks(page, "python")
    assert (left_out.runs, left_out.line, left_out.code) == (False, 3, "1 / 0\n")
    assert (found.runs, found.line, found.code) == (True, 7, "x = 1\n")
    with pytest.raises(ZeroDivisionError):
        exec(_compiled(left_out), {})
