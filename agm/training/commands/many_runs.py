"""`agm compare`, `agm tune` and `agm competition`: many runs."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from agm.training import exports, plots
from agm.training.commands.as_json import AS_JSON, comparison_values, terminal, write_json
from agm.training.commands.options import (
    CONFIG_FILE,
    OPTION,
    Penalty,
    choice,
    given_options,
    refuse_given,
    refuse_unused,
    setting_options,
    was_given,
)
from agm.training.commands.outcome import interrupted, require
from agm.training.commands.pictures import draw
from agm.training.commands.study import study_command
from agm.training.compare import compare_methods
from agm.training.competition import run_competition
from agm.training.competition_settings import CompetitionSettings
from agm.training.config import COMPARE, Config, read_config, read_table_of
from agm.training.console import Progressing, Terminal, comparison_table, competition_table, trials_table
from agm.training.errors import UserError
from agm.training.result import Result
from agm.training.run_folder import RunFolder
from agm.training.tune import Trial, best, parse_setting, tune_method, write_trials
from agm.training.variants import split_variants

__all__ = ["compare_command", "competition_command", "tune_command"]


@click.command("compare")
@click.argument("study", required=False, metavar="[STUDY.toml]")
@click.option(
    "--methods",
    default="joint,agm",
    show_default=True,
    help="Methods, by commas, each with settings of its own if wanted, NAME(KEY=VALUE,...); the first is the baseline.",
)
@click.option("--fusion", default="late", show_default=True, help="Fusions, by commas (agm.models.fusions).")
@click.option("--seeds", type=int, default=5, show_default=True, help="Runs per method: --seed, --seed + 1, ...")
@click.option(
    "--strength/--no-strength", default=False, show_default=True, help="Also measure each run's competition strength."
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Runs at a time, on the CPU, one thread each.")
@click.option("--only", multiple=True, metavar="TASK[:METHOD]", help="Of a study: these cells alone; may be repeated.")
@click.option("--scheduler", metavar="ADDRESS", help="Of a study: the Dask scheduler whose workers train.")
@setting_options("method", "fusion")
@CONFIG_FILE
@click.option("--out", metavar="FOLDER", default="runs/compare", show_default=True, help="Folder of the runs' folders.")
@AS_JSON
def compare_command(
    study: str | None,
    only: tuple[str, ...],
    scheduler: str | None,
    methods: str,
    fusion: str,
    seeds: int,
    strength: bool,
    jobs: int,
    settings: dict[str, Any],
    config_file: str | None,
    out: str,
    as_json: bool,
) -> None:
    """Train methods with the same seeds and compare them.

    Prints mean, standard deviation and the paired difference to the first method with its 95 % confidence
    interval; writes compare.csv, compare.md, compare.png and compare.toml, from which --config repeats it. Runs
    that are finished are not repeated, so the same command continues an interrupted comparison. With --strength
    networks of one modality each are trained beside them, and the data need a validation split, which --validation
    holds out.

    \b
    agm compare --methods "joint,agm(alpha=0.5,masked=shared),ogm-ge(alpha=0.3)" --fusion late,early

    With the file of a study its methods are tuned and compared on all its datasets, and ranked; the file has all
    settings.

    \b
    agm compare studies/field.toml --jobs 2 --out runs/field
    """
    if study is not None:
        _check_study(study)
        refuse_given("study", "only", "jobs", "scheduler", "out", "as_json", reason=f"the study {study!r} has its own")
        study_command(study, only, jobs, scheduler, out if was_given("out") else None, as_json)
        return
    if only or scheduler:
        raise UserError("Expected the file of a study with --only and --scheduler. Give it: agm compare STUDY.toml.")
    require("matplotlib", "tomli_w", "scipy")
    config = read_config(config_file, settings) if config_file else Config(**settings)
    recorded = read_table_of(config_file, COMPARE) if config_file else {}
    names = choice("methods", methods, recorded, split_variants)
    given = fusion if was_given("fusion") or not config_file else config.fusion
    fusions = choice("fusion", given, recorded, split_variants)
    seeds = seeds if was_given("seeds") else recorded.get("seeds", seeds)
    strength = strength if was_given("strength") else recorded.get("strength", strength)
    folder, console = Path(out), terminal(as_json)
    fusions = [replace(config, fusion=name).fusion for name in fusions] or [config.fusion]
    config = replace(config, fusion=fusions[0])
    with _Runs(console, ahead=jobs > 1) as runs:
        comparisons = compare_methods(
            config, names, seeds, folder, runs.observer, runs.finished, fusions=fusions, jobs=jobs, strength=strength
        )
    command = exports.command_line(config, names, seeds, fusions, strength)
    wide = len(fusions) > 1 or len(names) > 4
    exports.write_csv(folder / "compare.csv", comparisons, config.seed)
    (exports.write_wide_markdown if wide else exports.write_markdown)(folder / "compare.md", comparisons, command)
    exports.write_settings(folder / "compare.toml", config, names, seeds, fusions, strength)
    plots.draw_comparison(
        folder / "compare.png", comparisons, f"{Path(config.dataset).stem}, {', '.join(fusions)} fusion, {seeds} seeds"
    )
    console.print(comparison_table(comparisons))
    console.say(f"compare.csv, compare.md, compare.png, compare.toml: {folder}")
    console.suggest([(f"agm report {shlex.quote(out)}", "one page: table, pictures, curves")])
    if as_json:
        write_json([comparison_values(comparison) for comparison in comparisons])


def _check_study(path: str) -> None:
    """See that what stands where a study may stand is no dataset, and no entry of a list that lacks its comma."""
    suffix = Path(path).suffix
    if suffix in (".npz", ".pt"):
        raise UserError(f"Expected the file of a study, STUDY.toml, but got {path!r}. Give data with --dataset {path}.")
    if suffix != ".toml" and not Path(path).is_file():
        raise UserError(
            f"Expected the file of a study, STUDY.toml, but got {path!r}, which is no file. "
            "Write lists with commas: --methods joint,agm."
        )


@click.command("tune")
@click.option(
    "--setting",
    "choices",
    metavar="NAME=VALUE,...",
    multiple=True,
    required=True,
    help="Values to choose from, of a setting or an option of the method; several make a grid.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Runs a choice: --seed, --seed + 1, ...")
@setting_options()
@OPTION
@CONFIG_FILE
@click.option("--out", metavar="FOLDER", default="runs/tune", show_default=True, help="Folder of the runs' folders.")
@AS_JSON
def tune_command(
    choices: tuple[str, ...],
    seeds: int,
    settings: dict[str, Any],
    options: tuple[str, ...],
    config_file: str | None,
    out: str,
    as_json: bool,
) -> None:
    """Choose settings of a method on a validation split.

    Trains on the rest of the training split and never looks at the test split. Writes tune.csv; finished runs are
    not repeated.

    \b
    agm tune --method agm --setting alpha=0.25,0.5,1,1.5,2.5 --seeds 3 --validation 0.2
    """
    require("matplotlib", "tomli_w")
    settings |= given_options(options)
    config = read_config(config_file, settings) if config_file else Config(**settings)
    refuse_unused(settings, config.method)
    grid = dict(parse_setting(choice) for choice in choices)
    if len(grid) != len(choices):
        raise UserError(f"Expected every --setting to have its own name, but got {', '.join(choices)}. Merge them.")
    folder, console = Path(out), terminal(as_json)
    with _Runs(console) as runs:
        trials = tune_method(config, grid, seeds, folder, runs.observer, runs.finished)
    write_trials(folder / "tune.csv", trials, config.seed)
    console.print(trials_table(trials))
    console.say(f"chosen: {best(trials).variant.label}  (tune.csv: {folder})")
    if as_json:
        write_json({"chosen": best(trials).variant.label, "trials": [_trial_values(trial) for trial in trials]})


@click.command("competition")
@click.option("--methods", default="joint,agm", show_default=True, help="Methods to measure, by commas.")
@click.option(
    "--ridge",
    type=Penalty(),
    default="cv",
    show_default=True,
    help="Penalty of the regression; cv chooses it at each measurement, the paper has 120.",
)
@click.option(
    "--holdout",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of the training split for the regression alone, if there is no validation split.",
)
@click.option("--every", type=int, default=1, show_default=True, help="Epochs between two measurements.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="Of the bootstrap.")
@setting_options("method", "validation")
@CONFIG_FILE
@click.option(
    "--out", metavar="FOLDER", default="runs/competition", show_default=True, help="Folder of the runs' folders."
)
@AS_JSON
def competition_command(
    methods: str, settings: dict[str, Any], config_file: str | None, out: str, as_json: bool, **options: Any
) -> None:
    """Measure what each modality loses to the competition with the others.

    Trains each modality's concept (what a network learns from it alone), then the methods, and measures after each
    epoch how much of a concept cannot be read from the fused features: the competition strength. Writes
    competition.csv, competition.png, and the settings. Runs that are finished are not repeated, so the same command
    continues an interrupted measurement.

    \b
    agm competition --dataset mfeat --modalities zer,fou --methods joint,agm --epochs 10
    """
    require("matplotlib", "tomli_w")
    measurement = CompetitionSettings(**options)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    config = read_config(config_file, settings) if config_file else Config(**settings)
    folder, console = Path(out), terminal(as_json)
    with _Runs(console) as runs:
        competition = run_competition(config, names, folder, measurement, runs.observer, runs.finished)
    title = f"{Path(config.dataset).stem}, {config.fusion} fusion, seed {config.seed}"
    plots.draw_competition(folder / "competition.png", competition, title)
    console.print(competition_table(competition))
    console.say(f"competition.csv, competition.png, settings: {folder}")
    if as_json:
        write_json(competition.rows)


def _trial_values(trial: Trial) -> dict[str, Any]:
    return {
        "method": trial.variant.label,
        "accuracy": trial.accuracy,
        "deviation": trial.deviation,
        "loss": trial.loss,
        "accuracies": list(trial.accuracies),
    }


class _Runs:
    """Shows many runs, a line each, and draws those that have no picture. Use as a context.

    Args:
        console: where they are shown.
        ahead: whether other processes train them, so that they are finished when this one comes to them.
    """

    def __init__(self, console: Terminal, ahead: bool = False) -> None:
        self._console, self._ahead = console, ahead
        self._shown: Progressing | None = None

    def __enter__(self) -> _Runs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            interrupted("Interrupted.", "the same command: finished runs are not repeated")

    def observer(self, method: str, seed: int) -> Progressing:
        self._close()  # of a run that diverged
        self._shown = Progressing(self._console, f"{method} seed {seed}", brief=True)
        return self._shown.__enter__()

    def finished(self, result: Result) -> None:
        if (shown := self._close()) is not None:
            shown.summarise(result, whole=self._ahead)
        if not RunFolder(result.folder).picture.exists():
            draw(result)

    def _close(self) -> Progressing | None:
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.__exit__()
        return shown
