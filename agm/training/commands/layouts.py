"""`agm data layouts`, `agm data inspect` and `agm data convert`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import Progress

from agm.training.console import Terminal
from agm.training.errors import UserError, in_words

if TYPE_CHECKING:
    from agm.data.layouts import Listed
    from agm.data.layouts.inspection import Inspection

__all__ = ["convert_command", "inspect_command", "layouts_command"]

_SHOWN = 5  # samples that are named
_SETTING = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="An option of the layout, such as audio=fbank."
)


@click.command("layouts")
@click.argument("name", required=False)
def layouts_command(name: str | None) -> None:
    """List the datasets of the field that are read as they lie on a disk; of one NAME its files, splits and options.

    \b
    agm data layouts
    agm data layouts crema-d
    """
    from agm.data.layouts import LAYOUTS

    console = Terminal()
    if name is None:
        for layout in LAYOUTS.values():
            console.say(f"{layout.name:20} {layout.title}")
        return
    if name not in LAYOUTS:
        raise UserError(f"Expected the name of a layout ({', '.join(LAYOUTS)}), but got {name!r}.")
    layout = LAYOUTS[name]
    console.say(f"{layout.title}, from {layout.source}")
    for part in layout.parts.values():
        console.say(f"  {part.what}: {' or '.join(part.paths)}{'' if part.needed else ' (optional)'}")
    for scheme, help in layout.schemes.items():
        console.say(f"  --split {scheme}: {help}")
    for option, choice in layout.options.items():
        console.say(f"  --set {option}={choice.default}: {choice.help}; {choice.expected}")


@click.command("inspect")
@click.argument("path")
@click.option("--layout", metavar="NAME", help="Name of the layout; recognised by default.")
@click.option("--decode", is_flag=True, help="Decode every sample, to find those that cannot be.")
@_SETTING
def inspect_command(path: str, layout: str | None, decode: bool, settings: tuple[str, ...]) -> None:
    """Say which dataset a folder holds, what is missing, and which samples are left out and why.

    \b
    agm data inspect /data/CREMA-D
    """
    from agm.data.layouts.inspection import inspect

    console = Terminal()
    with Progress(console=console, disable=not (decode and console.is_terminal)) as bar:
        try:
            made = inspect(path, layout, decode=decode, options=_options(settings), progress=_shown(bar))
        except (ImportError, OSError, ValueError) as error:
            raise UserError(in_words(error)) from error
    _print(console, made)


@click.command("convert")
@click.argument("layout", metavar="LAYOUT")
@click.argument("path")
@click.option("--output", required=True, metavar="FILE.npz", help="The file to write; train with --dataset FILE.npz.")
@click.option("--split", metavar="NAME", help="How to split: clean, authors, actors ...  [default: clean]")
@click.option(
    "--split-file",
    "lists",
    multiple=True,
    metavar="SPLIT=FILE",
    help="Split by lists of names: train=FILE, validation=FILE, test=FILE; or one FILE with all.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out and count samples that cannot be used.")
@_SETTING
def convert_command(
    layout: str,
    path: str,
    output: str,
    split: str | None,
    lists: tuple[str, ...],
    skip_bad: bool,
    settings: tuple[str, ...],
) -> None:
    """Decode a dataset of the field once, into one file that holds arrays alone.

    LAYOUT is its name (crema-d, av-mnist, ur-funny ...), or auto to recognise it at PATH.

    \b
    agm data convert crema-d /data/CREMA-D --output crema-d.npz
    """
    from agm.data.layouts import convert, open_layout, split_by_lists

    if split is not None and lists:
        raise UserError("Expected one of --split and --split-file, but got both. Leave one out.")
    if Path(output).exists():
        raise UserError(f"Expected --output to be a new file, but got {output!r}, which exists. Choose another.")
    console = Terminal()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        try:
            name = None if layout == "auto" else layout
            data = open_layout(path, name, skip_bad=skip_bad, **_options(settings))
            listed = split_by_lists(data, lists, skip_bad=skip_bad) if lists else None
            made = convert(
                data,
                output,
                scheme=split or "clean",
                splits=None if listed is None else listed.splits,
                skip_bad=skip_bad,
                progress=_shown(bar),
            )
        except (ImportError, OSError, ValueError) as error:
            raise UserError(in_words(error).replace("`split`", "--split").replace("`path`", "--output")) from error
    counts = ", ".join(f"{number} {part}" for part, number in made.counts.items())
    console.say(f"{data.title}: {counts}")
    if data.task == "numbers":
        console.say(f"to predict: a number, {data.class_names[0]}")
    else:
        console.say("classes: " + "; ".join(f"{index} {label}" for index, label in enumerate(data.class_names)))
    if data.skipped:
        console.say(f"left out by the lists: {len(data.skipped)} (agm data inspect {shlex.quote(path)} says why)")
    if listed is not None:
        _print_lists(console, listed)
    if made.left_out:
        console.say(f"left out, which the authors hold out for competition strength: {made.left_out}")
    if made.bad:
        console.say(f"left out since they do not decode: {len(made.bad)}")
        for _, reason in made.bad[:_SHOWN]:
            console.say(f"  {reason}")
    console.say(f"wrote {made.path}: agm train --dataset {shlex.quote(str(made.path))}")


def _print_lists(console: Terminal, listed: Listed) -> None:
    console.say(f"left out, which no list names: {listed.unlisted}")
    if listed.absent:
        console.say(f"listed, but without files: {len(listed.absent)}, such as {listed.absent[0]}")
    if listed.unknown:
        console.say(f"listed, but no samples of this set: {len(listed.unknown)}")
        for text, where in listed.unknown[:_SHOWN]:
            console.say(f"  {text[:80]!r} in {where}")


def _options(settings: tuple[str, ...]) -> dict[str, str | bool]:
    made: dict[str, str | bool] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name in made or name in ("skip_bad", "name", "path", "root"):
            raise UserError(f"Expected --set to be NAME=VALUE, each name once, but got {setting!r}.")
        made[name] = value
    return made


def _shown(bar: Progress) -> Callable[[int, int], object]:
    task = bar.add_task("samples", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _print(console: Terminal, made: Inspection) -> None:
    console.say(f"{made.title} (layout {made.name}), from {made.source}")
    for what, place in made.found.items():
        console.say(f"  found    {what}: {place}")
    for what in made.missing:
        console.say(f"  missing  {what}")
    if not made.complete:
        raise UserError(
            f"Expected all parts of {made.title}, but got {len(made.missing)} that are missing. {made.advice}".strip()
        )
    for name, shape in made.shapes.items():
        console.say(f"  {name}: {shape}")
    if made.task == "numbers":
        console.say(f"{made.samples} samples, of each a number to predict: {made.classes[0][0]}")
    else:
        console.say(f"{made.samples} samples in {len(made.classes)} classes, in this order:")
        console.say("  " + "; ".join(f"{index} {label} ({n})" for index, (label, n) in enumerate(made.classes)))
    for scheme, splits in made.splits.items():
        console.say(f"  --split {scheme}: " + ", ".join(f"{number} {split}" for split, number in splits.items()))
    console.say(f"{sum(number for number, _, _ in made.skipped.values())} samples are left out")
    for reason, (number, first, file) in made.skipped.items():
        console.say(f"  {number} {reason}; the first is {first} ({file})")
    if made.undecoded is not None:
        console.say(f"{len(made.undecoded)} samples do not decode")
        for _, reason in made.undecoded[:_SHOWN]:
            console.say(f"  {reason}")
    for note in made.notes:
        console.say(f"note: {note}")
