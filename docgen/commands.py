"""The reference of the command line, from the parser."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from agm.training.cli import cli

PAGE = Path(__file__).parent.parent / "docs" / "command-line-reference.md"

_HEAD = """\
# Command-line reference

<!-- Made by `python docgen` from the parser: do not edit. -->

Every command and option, as `agm COMMAND --help` has them. [The command line](command-line.md) shows them at work.
"""


def page() -> str:
    """The page as it should be."""
    return "\n".join([_HEAD, *(line for command in _commands(cli, "agm") for line in _section(*command))])


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], f"{path} {name}")


def _section(path: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=path)
    lines = [f"## {path}", "", "```text", command.get_usage(context).removeprefix("Usage: "), "```", ""]
    lines += _described(command.help or "")
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        lines += ["| option | value | meaning |", "| --- | --- | --- |"]
        lines += [
            f"| {_names(option)} | {_value(option, context)} | {_meaning(option, context)} |" for option in options
        ]
        lines.append("")
    return lines


def _described(help: str) -> list[str]:
    """The text of a command; paragraphs that are not to be wrapped are lines of code."""
    lines: list[str] = []
    for paragraph in help.split("\n\n"):
        if "\b" in paragraph:
            lines += ["```text", *textwrap.dedent(paragraph.partition("\b\n")[2]).strip().splitlines(), "```", ""]
        else:
            lines += [" ".join(paragraph.split()), ""]
    return lines


def _names(option: click.Option) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _value(option: click.Option, context: click.Context) -> str:
    if option.is_flag:
        return ""
    first, *others = option.make_metavar(context).split("|")
    return " or ".join([f"`{first}`", *(f"`{other.lower()}`" for other in others)])


def _meaning(option: click.Option, context: click.Context) -> str:
    text = " ".join((option.help or "").split())
    if option.show_default and option.default is not None:
        default = option.default
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        if option.is_flag and option.secondary_opts:
            shown = (option.opts if default else option.secondary_opts)[0].removeprefix("--")
        text += f"  [default: {shown}]"
    if option.required:
        text += "  [required]"
    return text.replace("|", "\\|").replace("<", "&lt;")
