"""The command `agm`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress

import agm
from agm.ops._backends import BACKENDS
from agm.training import plots, report, tables
from agm.training.compare import compare_methods
from agm.training.competition import run_competition
from agm.training.config import COMPARE, Config, kind_of, read_config, read_table_of
from agm.training.config import settings as all_settings
from agm.training.contributions import measure_contributions
from agm.training.errors import UserError
from agm.training.measurement import Measurement
from agm.training.methods import OF_ONE
from agm.training.records import RunFolder
from agm.training.trainer import DivergedError, Result, load_run, recorded_config, train
from agm.training.tune import best, parse_setting, tune_method, write_trials
from agm.training.variants import parse_value, split_variants

__all__ = ["cli", "run"]

USER_ERROR, DIVERGED, INTERRUPTED = 2, 1, 130


class _NoneOr(click.ParamType):  # type: ignore[type-arg]
    """A number, or the word none."""

    def __init__(self, kind: Any) -> None:
        self.name, self._kind = f"{kind.name}|none", kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "none" else self._kind.convert(value, param, ctx)


class _Penalty(click.ParamType):  # type: ignore[type-arg]
    """A number, or the word cv."""

    name = "float|cv"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "cv" else click.FLOAT.convert(value, param, ctx)


def _setting_options(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option for every setting of `Config`; those that the user gave arrive together as `settings`."""
    specs = [spec for spec in all_settings() if spec.name not in left_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_settings(**values: Any) -> None:
            context = click.get_current_context()
            given = {
                spec.name: values.pop(spec.name)
                for spec in specs
                if context.get_parameter_source(spec.name) is not click.core.ParameterSource.DEFAULT
            }
            for spec in specs:
                values.pop(spec.name, None)
            command(settings=given, **values)

        for spec in reversed(specs):
            kind, optional = kind_of(spec.name)
            kind_type: Any = {str: click.STRING, int: click.INT, float: click.FLOAT}[kind]
            default = "none" if spec.default is None else spec.default
            with_settings = click.option(
                "--" + spec.name.replace("_", "-"),
                type=_NoneOr(kind_type) if optional else kind_type,
                help=f"{spec.metadata['help']}  [default: {default}]",
            )(with_settings)
        return with_settings

    return decorate


_CONFIG_FILE = click.option(
    "--config", "config_file", metavar="FILE", help="TOML file of settings; options given here win over it."
)
_OPTION = click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="Setting of the method's own, such as alpha=0.3 for ogm-ge; may be given several times.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(agm.__version__, prog_name="agm")
def cli() -> None:
    """Balanced multimodal training by Adaptive Gradient Modulation (AGM).

    \b
    agm train --fusion late --method agm          train on the bundled dataset
    agm compare --methods joint,agm --seeds 5     what AGM changes, with confidence intervals
    agm tune --setting alpha=0.5,1,1.5 --validation 0.2
                                                  choose a setting without looking at the test split
    agm competition --methods joint,agm           what each modality loses to the competition
    agm info                                      versions, devices, backends
    """


@cli.command("train")
@_setting_options()
@_OPTION
@_CONFIG_FILE
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
    _require("matplotlib", "tomli_w")
    if resume is not None and out is not None:
        raise UserError(
            f"Expected either --resume or --out, but got both ({resume}, {out}). "
            "A resumed run stays in its folder: leave --out away."
        )
    settings |= _given_options(options)
    if resume is not None:
        folder = RunFolder(Path(resume))
        recorded_config(folder)
        config = read_config(config_file or folder.config, settings)
    else:
        config = read_config(config_file, settings) if config_file else Config(**settings)
        folder = RunFolder(Path(out) if out else _new_folder(config))
    _refuse_unused(settings, config.method)
    console = Console()
    progress = report.Progressing(console)
    try:
        with progress:
            result = train(
                config, folder.path, resume=resume is not None, checkpoint_every=checkpoint_every, observer=progress
            )
    except KeyboardInterrupt:
        _interrupted(
            f"Interrupted after {progress.epochs} of {progress.total or config.epochs} epochs.",
            folder.resume_command if folder.config.exists() else None,
        )
    _draw(result)
    console.print(report.result_table(result))
    console.print(f"picture, tables, checkpoint: {folder.path}", highlight=False, soft_wrap=True)


@cli.command("compare")
@click.option(
    "--methods",
    default="joint,agm",
    show_default=True,
    help="Methods, by commas, each with settings of its own if wanted, NAME(KEY=VALUE,...); the first is the baseline.",
)
@click.option("--fusion", default="late", show_default=True, help="Fusions, by commas (agm.models.fusions).")
@click.option("--seeds", type=int, default=5, show_default=True, help="Runs a method: --seed, --seed + 1, ...")
@click.option(
    "--strength/--no-strength", default=False, show_default=True, help="Also measure each run's competition strength."
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Runs at a time, on the CPU, a thread each.")
@_setting_options("method", "fusion")
@_CONFIG_FILE
@click.option("--out", metavar="FOLDER", default="runs/compare", show_default=True, help="Folder of the runs' folders.")
def compare_command(
    methods: str,
    fusion: str,
    seeds: int,
    strength: bool,
    jobs: int,
    settings: dict[str, Any],
    config_file: str | None,
    out: str,
) -> None:
    """Train methods with the same seeds and compare them.

    Prints mean, standard deviation and the paired difference to the first method with its 95 % confidence
    interval; writes compare.csv, compare.md, compare.png and compare.toml, from which --config repeats it. Runs
    that are finished are not repeated, so the same command continues an interrupted comparison. With --strength
    networks of one modality each are trained beside them, and the data need a validation split, which --validation
    holds out.

    \b
    agm compare --methods "joint,agm(alpha=0.5,masked=shared),ogm-ge(alpha=0.3)" --fusion late,early
    """
    _require("matplotlib", "tomli_w", "scipy")
    config = read_config(config_file, settings) if config_file else Config(**settings)
    recorded = read_table_of(config_file, COMPARE) if config_file else {}
    names = _choice("methods", methods, recorded, split_variants)
    given = fusion if _was_given("fusion") or not config_file else config.fusion
    fusions = _choice("fusion", given, recorded, split_variants)
    seeds = seeds if _was_given("seeds") else recorded.get("seeds", seeds)
    strength = strength if _was_given("strength") else recorded.get("strength", strength)
    folder, console = Path(out), Console()
    fusions = [replace(config, fusion=name).fusion for name in fusions] or [config.fusion]
    config = replace(config, fusion=fusions[0])
    with _Runs(console, ahead=jobs > 1) as runs:
        comparisons = compare_methods(
            config, names, seeds, folder, runs.observer, runs.finished, fusions=fusions, jobs=jobs, strength=strength
        )
    command = tables.command_line(config, names, seeds, fusions, strength)
    wide = len(fusions) > 1 or len(names) > 4
    tables.write_csv(folder / "compare.csv", comparisons, config.seed)
    (tables.write_wide_markdown if wide else tables.write_markdown)(folder / "compare.md", comparisons, command)
    tables.write_settings(folder / "compare.toml", config, names, seeds, fusions, strength)
    plots.draw_comparison(
        folder / "compare.png", comparisons, f"{Path(config.dataset).stem}, {', '.join(fusions)} fusion, {seeds} seeds"
    )
    console.print(report.comparison_table(comparisons))
    console.print(f"compare.csv, compare.md, compare.png, compare.toml: {folder}", highlight=False, soft_wrap=True)


@cli.command("tune")
@click.option(
    "--setting",
    "choices",
    metavar="NAME=VALUE,...",
    multiple=True,
    required=True,
    help="Values to choose from, of a setting or an option of the method; several make a grid.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Runs a choice: --seed, --seed + 1, ...")
@_setting_options()
@_OPTION
@_CONFIG_FILE
@click.option("--out", metavar="FOLDER", default="runs/tune", show_default=True, help="Folder of the runs' folders.")
def tune_command(
    choices: tuple[str, ...],
    seeds: int,
    settings: dict[str, Any],
    options: tuple[str, ...],
    config_file: str | None,
    out: str,
) -> None:
    """Choose settings of a method on a validation split.

    Trains on the rest of the training split and never looks at the test split. Writes tune.csv; finished runs are
    not repeated.

    \b
    agm tune --method agm --setting alpha=0.25,0.5,1,1.5,2.5 --seeds 3 --validation 0.2
    """
    _require("matplotlib", "tomli_w")
    settings |= _given_options(options)
    config = read_config(config_file, settings) if config_file else Config(**settings)
    _refuse_unused(settings, config.method)
    grid = dict(parse_setting(choice) for choice in choices)
    if len(grid) != len(choices):
        raise UserError(f"Expected every --setting to have its own name, but got {', '.join(choices)}. Merge them.")
    folder, console = Path(out), Console()
    with _Runs(console) as runs:
        trials = tune_method(config, grid, seeds, folder, runs.observer, runs.finished)
    write_trials(folder / "tune.csv", trials, config.seed)
    console.print(report.trials_table(trials))
    console.print(f"chosen: {best(trials).variant.label}  (tune.csv: {folder})", highlight=False, soft_wrap=True)


@cli.command("competition")
@click.option("--methods", default="joint,agm", show_default=True, help="Methods to measure, by commas.")
@click.option(
    "--ridge",
    type=_Penalty(),
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
@_setting_options("method", "validation")
@_CONFIG_FILE
@click.option(
    "--out", metavar="FOLDER", default="runs/competition", show_default=True, help="Folder of the runs' folders."
)
def competition_command(
    methods: str, settings: dict[str, Any], config_file: str | None, out: str, **options: Any
) -> None:
    """Measure what each modality loses to the competition with the others.

    Trains each modality's concept (what a network learns from it alone), then the methods, and measures after each
    epoch how much of a concept cannot be read from the fused features: the competition strength. Writes
    competition.csv, competition.png, and the settings. Runs that are finished are not repeated, so the same command
    continues an interrupted measurement.
    """
    _require("matplotlib", "tomli_w")
    measurement = Measurement(**options)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    config = read_config(config_file, settings) if config_file else Config(**settings)
    folder, console = Path(out), Console()
    with _Runs(console) as runs:
        competition = run_competition(config, names, folder, measurement, runs.observer, runs.finished)
    title = f"{Path(config.dataset).stem}, {config.fusion} fusion, seed {config.seed}"
    plots.draw_competition(folder / "competition.png", competition, title)
    console.print(report.competition_table(competition))
    console.print(f"competition.csv, competition.png, settings: {folder}", highlight=False, soft_wrap=True)


@cli.command("evaluate")
@click.argument("run_folder", metavar="RUN")
def evaluate_command(run_folder: str) -> None:
    """Evaluate RUN on the test split again.

    Also shows what each modality contributes to the accuracy, where there are two or more.
    """
    console, result = Console(), load_run(run_folder)
    console.print(report.result_table(result))
    if len(result.modalities) > 1:
        console.print(report.contribution_table(measure_contributions(result)))


@cli.command("plot")
@click.argument("run_folder", metavar="RUN")
def plot_command(run_folder: str) -> None:
    """Draw the picture of RUN, also while it trains."""
    _require("matplotlib")
    folder = RunFolder(Path(run_folder))
    if not folder.config.exists():
        raise UserError(
            f"Expected {run_folder!r} to be a run folder, but got no config.toml there. Give a folder of agm train."
        )
    click.echo(plots.draw_run(folder.path, _title(read_config(folder.config))))


@cli.command("info")
def info_command() -> None:
    """Show versions, devices and backends.

    Tells which backend serves each operation, and why the others do not.
    """
    console = Console()
    console.print(report.key_value_table("versions", _versions()))
    console.print(report.key_value_table("devices", _devices()))
    console.print(report.key_value_table("native library (agm._C)", _native()))
    console.print(report.service_table(agm.backends()))
    if forced := os.environ.get("AGM_BACKEND"):
        console.print(f"AGM_BACKEND={forced} forces this backend instead of the automatic choice.")
        if forced not in ("auto", *BACKENDS):
            raise UserError(f"Expected AGM_BACKEND to be 'auto' or one of {sorted(BACKENDS)}, but got {forced!r}.")


@cli.group("data")
def data_group() -> None:
    """Datasets."""


@data_group.group("build")
def build_group() -> None:
    """Build a dataset at another difficulty."""


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
    """Spoken digits (espeak-ng) paired with noisy images of handwritten ones (scikit-learn)."""
    from agm.data.build_av_digits import build_av_digits

    _require_new(output)
    console = Console()
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
            raise UserError(str(error)) from error
    _wrote(console, path)


@build_group.command("avt-digits")
@click.option("--av-digits", metavar="FILE.npz", help="Sounds and images: a file of agm data build av-digits.")
@click.option("--typos", type=float, default=0.15, show_default=True, help="Share of the letters that are mistyped.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of words, their split and typos.")
@click.option("--output", required=True, metavar="FILE.npz", help="The file to write; train with --dataset FILE.npz.")
def build_avt_digits_command(av_digits: str | None, typos: float, seed: int, output: str) -> None:
    """AV-Digits, and as a third modality the digits written out in forty languages, with typing mistakes."""
    from agm.data.build_avt_digits import build_avt_digits

    _require_new(output)
    try:
        path = build_avt_digits(output, av_digits=av_digits, typos=typos, seed=seed)
    except (OSError, ValueError) as error:
        raise UserError(str(error).replace("`av_digits`", "--av-digits")) from error
    _wrote(Console(), path)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; mistakes of the user become one line on stderr.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 2 for a mistake of the user, 1 for a run that diverged, 130 after Ctrl-C.
    """
    try:
        status = cli.main(args=arguments, prog_name="agm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return USER_ERROR
    except click.ClickException as error:
        where = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message() + where, USER_ERROR)
    except click.Abort:
        return _fail("interrupted", INTERRUPTED)
    except UserError as error:
        return _fail(str(error), DIVERGED if isinstance(error, DivergedError) else USER_ERROR)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    print("agm: error: " + " ".join(message.split()), file=sys.stderr)
    return status


class _Runs:
    """Shows many runs, a line each, and draws those that have no picture. Use as a context.

    Args:
        console: where they are shown.
        ahead: whether other processes train them, so that they are finished when this one comes to them.
    """

    def __init__(self, console: Console, ahead: bool = False) -> None:
        self._console, self._ahead = console, ahead
        self._shown: report.Progressing | None = None

    def __enter__(self) -> _Runs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            _interrupted("Interrupted.", "the same command: finished runs are not repeated")

    def observer(self, method: str, seed: int) -> report.Progressing:
        self._close()  # of a run that diverged
        self._shown = report.Progressing(self._console, f"{method} seed {seed}", brief=True)
        return self._shown.__enter__()

    def finished(self, result: Result) -> None:
        if (shown := self._close()) is not None:
            shown.summarise(result, whole=self._ahead)
        if not RunFolder(result.folder).picture.exists():
            _draw(result)

    def _close(self) -> report.Progressing | None:
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.__exit__()
        return shown


def _given_options(options: Sequence[str]) -> dict[str, Any]:
    """{"options": ...} from NAME=VALUE, if there are any."""
    found = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"Expected --option to be NAME=VALUE, but got {text!r}. For example: --option alpha=0.3.")
        found[name.strip().replace("-", "_")] = parse_value(value.strip())
    return {"options": found} if found else {}


def _refuse_unused(settings: Mapping[str, Any], method: str) -> None:
    """A setting of AGM that was given for another strategy would silently do nothing."""
    if method in ("agm", "joint") or method.partition(":")[0] in OF_ONE:
        return
    for name in ("alpha", "max_gap", "masked"):
        if name in settings:
            raise UserError(
                f"Expected setting `{name}` with method agm alone, but got it with {method!r}. "
                f"Its own settings are options: --option {name}=VALUE."
            )


def _was_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def _choice(name: str, value: str, recorded: Mapping[str, Any], read: Callable[[str], list[str]]) -> list[str]:
    """A list from the command line, from the file of a comparison, or the default, in this order."""
    if not _was_given(name) and name in recorded:
        return [str(entry) for entry in recorded[name]]
    return read(value)


def _interrupted(what: str, how: str | None) -> None:
    how = f" Continue with: {how}" if how else " Nothing was written."
    click.echo(what + how, err=True)
    raise click.exceptions.Exit(INTERRUPTED)


def _require(*packages: str) -> None:
    missing = [name.replace("_", "-") for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"This command needs {', '.join(missing)}. Install with: pip install 'agm[train]'")


def _require_new(output: str) -> None:
    if Path(output).exists():
        raise UserError(f"Expected --output to be a new file, but got {output!r}, which exists. Choose another.")


def _wrote(console: Console, path: Path) -> None:
    console.print(f"wrote {path}: agm train --dataset {shlex.quote(str(path))}", highlight=False, soft_wrap=True)


def _new_folder(config: Config) -> Path:
    """A folder below runs/ that holds no run: the same settings again get a number."""
    name = "-".join([Path(config.dataset).stem, config.fusion, config.method.replace(":", "-"), f"seed{config.seed}"])
    folder, number = Path("runs") / name, 1
    while RunFolder(folder).holds_run():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _draw(result: Result) -> None:
    plots.draw_run(result.folder, _title(result.config))


def _title(config: Config) -> str:
    alpha = f", alpha {config.alpha:g}, {config.masked}" if config.method == "agm" else ""
    return f"{Path(config.dataset).stem}, {config.fusion} fusion, {config.method}{alpha}, seed {config.seed}"


def _versions() -> dict[str, object]:
    versions: dict[str, object] = {
        "agm": agm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if importlib.util.find_spec("triton") is None:
        return versions | {"triton": "not installed: pip install 'agm[triton]'"}
    from importlib.metadata import version

    return versions | {"triton": version("triton")}


def _devices() -> dict[str, object]:
    devices: dict[str, object] = {
        "cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    }
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        devices["cuda"] = "no GPU found" if built else "off: this torch is a CPU build"
    return devices


def _native() -> dict[str, object]:
    from agm.ops import _library

    if _library.native is None:
        return {"not loaded": _library.native_error}
    info = _library.native.build_info()
    return dict(info) if isinstance(info, dict) else {"build": info}
