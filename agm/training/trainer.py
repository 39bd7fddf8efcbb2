"""A run from a configuration to a finished folder, in one go or in several."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from agm.data import MultimodalData, available
from agm.training.config import ENVIRONMENT, Config, differences, read_config, read_table_of, write_config
from agm.training.environment import backend, environment, reproducible
from agm.training.errors import UserError
from agm.training.methods import Method, build_method, check_method
from agm.training.observer import Observer
from agm.training.problem import Problem
from agm.training.result import Final, Result
from agm.training.run_folder import RunFolder
from agm.training.samples import hold_out, load_data
from agm.training.training_loop import Trainer
from agm.training.writing import locked

__all__ = ["check_settings", "load_run", "recorded_config", "train"]

DATA = "data"  # in what a run records of its environment: the digest of its data


def train(
    config: Config,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    checkpoint_every: int | None = None,
    observer: Observer | None = None,
    final: Final = "test",
) -> Result:
    """Train as `config` says and leave config.toml, metrics.csv, steps.csv, checkpoint.pt and result.json.

    The same configuration gives the same weights bit for bit on the same machine and versions, also when the
    run was interrupted anywhere and resumed: it goes on from its last checkpoint. The figures of a result
    are those of the last epoch on the test split (with `choose` "best", of the best one on the validation split), never
    those of the epoch that did best on it.

    Torch's generators, thread count and determinism flags are as before afterwards.

    Args:
        config: the settings.
        folder: made if it does not exist; must not hold a run, unless `resume`.
        resume: go on with the run in `folder`, which must have the same settings.
        checkpoint_every: steps between two checkpoints inside an epoch, each of which waits for the device; None: at
            the ends of epochs alone. It changes no number.
        observer: is told about every step and epoch.
        final: the split of the result: "test", or "validation" for choosing among settings, which must never look at
            the test split.

    Raises:
        UserError: settings, data or a folder that do not fit; the message says what to do.
        DivergedError: a loss or a weight is not finite. The last checkpoint is from before.
    """
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(
            f"Expected `checkpoint_every` to be a number of steps >= 1, or none, but got {checkpoint_every}. "
            "Set it with --checkpoint-every."
        )
    run = RunFolder(Path(folder))
    _check_folder(run, config, resume)
    config = config.resolved()
    backend(config)
    with reproducible(config):
        data = _data_of_run(config) if resume else load_data(config)
        method = _new_method(config, data, final)
        with locked(run.path):
            _check_folder(run, config, resume)  # another process may have been faster
            trainer = Trainer(config, run, data, method, observer or Observer(), final, checkpoint_every)
            if resume:
                trainer.restore()
                _keep_place_of_data(run, config, trainer.fingerprint)
            else:
                write_config(run.config, config, {**environment(config), DATA: trainer.fingerprint})
            return trainer.fit()


def load_run(
    folder: str | os.PathLike[str], dataset: str | os.PathLike[str] | None = None, *, final: Final = "test"
) -> Result:
    """A run as of its last checkpoint, evaluated anew on the test split; nothing is written.

    Args:
        folder: of the run.
        dataset: where its data are, if they moved since.
        final: the split to evaluate on, as in `train`.

    Raises:
        UserError: no run, no finished epoch, or data that changed since.
    """
    run = RunFolder(Path(folder))
    config = recorded_config(run)
    config = (config if dataset is None else replace(config, dataset=os.fspath(dataset))).resolved()
    with reproducible(config):
        data = _data_of_run(config)
        trainer = Trainer(config, run, data, _new_method(config, data, final), Observer(), final)
        if not run.checkpoint.exists():
            raise UserError(
                f"Expected {str(run.path)!r} to have finished an epoch, but got no checkpoint there. "
                f"Continue it: {run.resume_command}"
            )
        trainer.load_checkpoint()
        return trainer.result()


def check_settings(config: Config, final: Final = "test", data: MultimodalData | None = None) -> None:
    """Load the data, unless they are given, and build the method once, so that a mistake shows before hours of runs.

    Raises:
        UserError: settings or data that do not fit.
    """
    config = config.resolved()
    with reproducible(config):
        _new_method(config, load_data(config) if data is None else data, final)


def _data_of_run(config: Config) -> MultimodalData:
    if config.dataset not in available() and not os.path.exists(config.dataset):
        raise UserError(
            f"Expected the data of the run at {config.dataset!r}, but got nothing there. "
            "If they moved, say where they are now with --dataset."
        )
    return load_data(config)


def _keep_place_of_data(run: RunFolder, config: Config, fingerprint: str) -> None:
    """Of a run that goes on: its data are those that it began with, and its settings say where they are now.

    Raises:
        UserError: they are others.
    """
    met = read_table_of(run.config, ENVIRONMENT)
    if met.get(DATA, fingerprint) != fingerprint:
        raise UserError(
            f"Expected the data {config.dataset!r} to be those that the run began with, but their contents are others. "
            "Give those with --dataset, or train into another folder with --out."
        )
    if recorded_config(run).resolved().dataset != config.dataset:
        write_config(run.config, config, {str(k): str(v) for k, v in met.items()}, replace_file=True)


def _check_folder(run: RunFolder, config: Config, resume: bool) -> None:
    if resume:
        recorded = replace(recorded_config(run), dataset=config.dataset)  # whose contents are compared
        if changed := differences(config.resolved(), recorded.resolved()):
            raise UserError(
                f"Expected the settings to be those of the run in {str(run.path)!r}, but got others "
                f"(asked for, in the run): {', '.join(changed)}. "
                "A folder keeps its settings: leave them as they are, or choose another folder with --out."
            )
    elif run.path.exists() and not run.path.is_dir():
        raise UserError(
            f"Expected the run folder {str(run.path)!r} to be a folder, but got a file. Choose another with --out."
        )
    elif run.holds_run():
        raise UserError(
            f"Expected {str(run.path)!r} to hold no run yet, but got one. "
            f"Continue it: {run.resume_command}, or choose another folder with --out."
        )


def recorded_config(run: RunFolder) -> Config:
    """The settings of the run in a folder.

    Raises:
        UserError: there is none.
    """
    if not run.config.exists():
        raise UserError(
            f"Expected {str(run.path)!r} to hold a run, but got no config.toml there. "
            "Give the folder that agm train made, such as runs/NAME."
        )
    config = read_config(run.config)
    # It stands at the end: a file without it was cut off, and has defaults where it had settings.
    if not read_table_of(run.config, ENVIRONMENT):
        raise UserError(
            f"Expected {str(run.config)!r} to be whole, as agm train wrote it, but got none of its last lines, "
            f"[{ENVIRONMENT}]. Train again into another folder with --out."
        )
    return config


def _new_method(config: Config, data: MultimodalData, final: Final = "test") -> Method:
    check_method(config.method)
    data = hold_out(data, config)
    shapes = {name: tuple(data.train.inputs[name].shape[1:]) for name in data.modalities}
    method = build_method(config, shapes, data.num_classes, Problem.of(data, config))
    asked = {
        f"for method {config.method!r}": "validation" in method.strategy.needs,
        "for choosing settings": final == "validation",
        "for schedule plateau": config.schedule == "plateau",
        "for early stopping": config.early_stopping is not None,
        "for choosing the best epoch": config.choose == "best",
    }
    if data.validation is None and any(asked.values()):
        who = next(reason for reason, given in asked.items() if given)
        raise UserError(
            f"Expected data with a validation split {who}, but got none. "
            "Hold out a share of the training split, for example with --validation 0.2."
        )
    return method
