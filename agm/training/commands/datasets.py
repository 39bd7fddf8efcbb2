"""`agm data`."""

from __future__ import annotations

import click
from rich.progress import Progress

from agm.training.commands.layouts import convert_command, inspect_command, layouts_command
from agm.training.commands.packages import BUILDS, require_new, wrote
from agm.training.console import Terminal
from agm.training.errors import UserError, in_words

__all__ = ["data_group"]


@click.group("data")
def data_group() -> None:
    """Datasets."""


data_group.add_command(layouts_command)
data_group.add_command(inspect_command)
data_group.add_command(convert_command)


@data_group.group("build")
def build_group() -> None:
    """Build a dataset: a bundled one again, at another difficulty, or one that does not come with the package.

    \b
    agm data build av-digits --image-noise 0.8 --snr -5 10 --output hard.npz
    """


@build_group.command("av-digits")
@click.option(
    "--image-noise", type=float, default=0.45, show_default=True, help="Standard deviation on pixels in [0, 1]."
)
@click.option(
    "--snr", type=float, nargs=2, default=(-5.0, 10.0), show_default=True, help="Lowest and highest SNR in dB."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of voices, pairs, splits and noise.")
@click.option("--output", required=True, metavar="FILE.npz", help="The file to write; train with --dataset FILE.npz.")
def build_av_digits_command(image_noise: float, snr: tuple[float, float], seed: int, output: str) -> None:
    """Spoken digits (espeak-ng) paired with noisy images of handwritten ones (scikit-learn).

    \b
    agm data build av-digits --image-noise 0.8 --snr -5 10 --output hard.npz
    """
    from agm.data.build_av_digits import build_av_digits

    require_new(output)
    console = Terminal()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("samples", total=None)
        try:
            path = build_av_digits(
                output,
                image_noise=image_noise,
                snr=snr,
                seed=seed,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise UserError(in_words(error)) from error
    wrote(console, path)


@build_group.command("avt-digits")
@click.option("--av-digits", metavar="FILE.npz", help="Sounds and images: a file of agm data build av-digits.")
@click.option("--typos", type=float, default=0.15, show_default=True, help="Share of the letters that are mistyped.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of words, their split and typos.")
@click.option("--output", required=True, metavar="FILE.npz", help="The file to write; train with --dataset FILE.npz.")
def build_avt_digits_command(av_digits: str | None, typos: float, seed: int, output: str) -> None:
    """AV-Digits, and as a third modality the digits written out in forty languages, with typing mistakes.

    \b
    agm data build avt-digits --typos 0.3 --output three.npz
    """
    from agm.data.build_avt_digits import build_avt_digits

    require_new(output)
    try:
        path = build_avt_digits(output, av_digits=av_digits, typos=typos, seed=seed)
    except (OSError, ValueError) as error:
        raise UserError(in_words(error).replace("`av_digits`", "--av-digits")) from error
    wrote(Terminal(), path)


for _command in BUILDS:
    build_group.add_command(_command)
