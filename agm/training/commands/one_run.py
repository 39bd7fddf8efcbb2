"""`agm train`, `agm evaluate` and `agm plot`: one run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from agm.training import plots
from agm.training.answers import task_of_figures
from agm.training.commands.as_json import AS_JSON, result_values, terminal, write_json
from agm.training.commands.options import CONFIG_FILE, OPTION, given_options, refuse_unused, setting_options
from agm.training.commands.outcome import interrupted, require
from agm.training.commands.pictures import draw
from agm.training.config import Config, read_config
from agm.training.console import Progressing, Terminal, contribution_table, result_table
from agm.training.contributions import measure_contributions
from agm.training.errors import UserError
from agm.training.exports import title_of_run
from agm.training.result import Result
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
@AS_JSON
def train_command(
    settings: dict[str, Any],
    options: tuple[str, ...],
    config_file: str | None,
    out: str | None,
    resume: str | None,
    checkpoint_every: int | None,
    as_json: bool,
) -> None:
    """Train a network.

    Leaves settings, tables, checkpoint and picture in a run folder. The settings are in its config.toml, and
    agm train --config FOLDER/config.toml repeats the run bit for bit on the same machine.

    \b
    agm train --dataset clipart --modalities image,keywords
    agm train --dataset mine.npz --method ogm-ge --option alpha=0.3 --epochs 60
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
    console = terminal(as_json)
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
    console.suggest(_next(result))
    if as_json:
        write_json(result_values(result))


@click.command("evaluate")
@click.argument("run_folder", metavar="RUN")
@click.option("--dataset", metavar="DATA", help="Where the data of the run are now, if they moved since.")
@AS_JSON
def evaluate_command(run_folder: str, dataset: str | None, as_json: bool) -> None:
    """Evaluate RUN on the test split again.

    Also shows what each modality contributes to the accuracy, where there are two or more and one class per sample.

    \b
    agm evaluate runs/clipart-late-agm-seed0
    """
    console, result = terminal(as_json), load_run(run_folder, dataset)
    console.print(result_table(result))
    values = result_values(result)
    # What subsets are worth is counted in samples whose class is right.
    if len(result.modalities) > 1 and task_of_figures(result.evaluation.further) == "classes":
        found = measure_contributions(result)
        console.print(contribution_table(found))
        values |= {"contributions": found.contributions, "cooperation": found.cooperation, "alone": found.alone}
    if as_json:
        write_json(values)


@click.command("plot")
@click.argument("run_folder", metavar="RUN")
def plot_command(run_folder: str) -> None:
    """Draw the picture of RUN, also while it trains.

    \b
    agm plot runs/clipart-late-agm-seed0
    """
    require("matplotlib")
    folder = RunFolder(Path(run_folder))
    if not folder.config.exists():
        raise UserError(
            f"Expected {run_folder!r} to be a run folder, but got no config.toml there. Give a folder of agm train."
        )
    Terminal().say(str(plots.draw_run(folder.path, title_of_run(read_config(folder.config)))))


def _next(result: Result) -> list[tuple[str, str]]:
    """Commands that people want after a run, and what for."""
    run = shlex.quote(str(result.folder))
    found = [(f"agm report {run}", "one page: curves, confusions, samples")]
    if len(result.modalities) > 1:
        found.append((f"agm evaluate {run}", "what each modality contributes"))
    if result.config.method == "agm":
        data = shlex.quote(result.config.dataset)
        found.append((f"agm compare --dataset {data} --methods joint,agm", "does AGM help here? five seeds each"))
    return [*found, (f"agm train --config {run}/config.toml --seed {result.config.seed + 1}", "another seed")]


def _new_folder(config: Config) -> Path:
    """A folder below runs/ that holds no run: the same settings again get a number."""
    stem = re.sub(r"[^\w.=+-]", "_", Path(config.dataset).stem)[:100] or "data"
    name = "-".join([stem, config.fusion, config.method.replace(":", "-"), f"seed{config.seed}"])
    folder, number = Path("runs") / name, 1
    while RunFolder(folder).holds_run():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder
