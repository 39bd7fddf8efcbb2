"""`agm train`, `agm evaluate` and `agm plot`: one run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from agm.training import plots
from agm.training.answers import task_of_figures
from agm.training.commands.options import CONFIG_FILE, OPTION, given_options, refuse_unused, setting_options
from agm.training.commands.outcome import interrupted, require
from agm.training.commands.pictures import draw, title_of
from agm.training.config import Config, read_config
from agm.training.console import Progressing, Terminal, contribution_table, result_table
from agm.training.contributions import measure_contributions
from agm.training.errors import UserError
from agm.training.run_folder import RunFolder
from agm.training.trainer import load_run, recorded_config, train

__all__ = ["evaluate_command", "plot_command", "train_command"]


@click.command("train")
@setting_options()
@OPTION
@CONFIG_FILE
@click.option("--out", metavar="FOLDER", help="Run folder.  [default: runs/ and a name from the settings]")
@click.option("--resume", metavar="RUN", help="Go on with the interrupted run in this folder, exactly.")
@click.option(
    "--checkpoint-every", type=int, metavar="STEPS", help="Checkpoints inside epochs too.  [default: at their ends]"
)
def train_command(
    settings: dict[str, Any],
    options: tuple[str, ...],
    config_file: str | None,
    out: str | None,
    resume: str | None,
    checkpoint_every: int | None,
) -> None:
    """Train a network.

    Leaves settings, tables, checkpoint and picture in a run folder. The settings are in its config.toml, and
    agm train --config FOLDER/config.toml repeats the run bit for bit on the same machine.
    """
    require("matplotlib", "tomli_w")
    if resume is not None and out is not None:
        raise UserError(
            f"Expected either --resume or --out, but got both ({resume}, {out}). "
            "A resumed run stays in its folder: leave --out away."
        )
    settings |= given_options(options)
    if resume is not None:
        folder = RunFolder(Path(resume))
        recorded_config(folder)
        config = read_config(config_file or folder.config, settings)
    else:
        config = read_config(config_file, settings) if config_file else Config(**settings)
        folder = RunFolder(Path(out) if out else _new_folder(config))
    refuse_unused(settings, config.method)
    console = Terminal()
    progress = Progressing(console)
    try:
        with progress:
            result = train(
                config, folder.path, resume=resume is not None, checkpoint_every=checkpoint_every, observer=progress
            )
    except KeyboardInterrupt:
        interrupted(
            f"Interrupted after {progress.epochs} of {progress.total or config.epochs} epochs.",
            folder.resume_command if folder.config.exists() else None,
        )
    draw(result)
    console.print(result_table(result))
    console.say(f"picture, tables, checkpoint: {folder.path}")


@click.command("evaluate")
@click.argument("run_folder", metavar="RUN")
@click.option("--dataset", metavar="DATA", help="Where the data of the run are now, if they moved since.")
def evaluate_command(run_folder: str, dataset: str | None) -> None:
    """Evaluate RUN on the test split again.

    Also shows what each modality contributes to the accuracy, where there are two or more and one class a sample.
    """
    console, result = Terminal(), load_run(run_folder, dataset)
    console.print(result_table(result))
    # What subsets are worth is counted in samples whose class is right.
    if len(result.modalities) > 1 and task_of_figures(result.evaluation.further) == "classes":
        console.print(contribution_table(measure_contributions(result)))


@click.command("plot")
@click.argument("run_folder", metavar="RUN")
def plot_command(run_folder: str) -> None:
    """Draw the picture of RUN, also while it trains."""
    require("matplotlib")
    folder = RunFolder(Path(run_folder))
    if not folder.config.exists():
        raise UserError(
            f"Expected {run_folder!r} to be a run folder, but got no config.toml there. Give a folder of agm train."
        )
    Terminal().say(str(plots.draw_run(folder.path, title_of(read_config(folder.config)))))


def _new_folder(config: Config) -> Path:
    """A folder below runs/ that holds no run: the same settings again get a number."""
    stem = re.sub(r"[^\w.=+-]", "_", Path(config.dataset).stem)[:100] or "data"
    name = "-".join([stem, config.fusion, config.method.replace(":", "-"), f"seed{config.seed}"])
    folder, number = Path("runs") / name, 1
    while RunFolder(folder).holds_run():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder
