"""The settings of a run: one frozen dataclass, from which the command line, the TOML file and the docs come."""

from __future__ import annotations

import difflib
import errno
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch

from agm.data import available
from agm.data._files import read_text
from agm.models import aliases, encoders
from agm.training.errors import UserError
from agm.training.writing import write_text

__all__ = [
    "ENVIRONMENT",
    "Config",
    "config_text",
    "differences",
    "kind_of",
    "read_config",
    "read_table_of",
    "read_toml",
    "settings",
    "write_config",
]

ENVIRONMENT = "environment"  # the table of a run's config.toml that informs and is never read back
COMPARE = "compare"  # the table of a comparison, which others read
TABLES = (ENVIRONMENT, COMPARE)
OPTIONS = "options"  # the table of the method's own settings


def setting(default: Any, help: str, expected: str, valid: Callable[[Any], bool]) -> Any:
    """A field of `Config`: its default, what it does, and in words and in code which values it takes."""
    return field(default=default, metadata={"help": help, "expected": expected, "valid": valid})


def settings() -> list[Field[Any]]:
    """The fields of `Config` with one value each, which are all but `options`."""
    return [spec for spec in fields(Config) if spec.name != OPTIONS]


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return "one of " + ", ".join(names), lambda value: value in names


def _is_storable(text: str) -> bool:
    """Whether a file can have this name, and a configuration can hold it."""
    try:
        return b"\0" not in text.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _up_to(most: int) -> tuple[str, Callable[[Any], bool]]:
    return f"an integer from 1 to {most}", lambda value: 1 <= value <= most


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _not_negative(value: float) -> bool:
    return value >= 0 and math.isfinite(value)


_TEXT = ("a non-empty string of characters that UTF-8 has", lambda value: bool(value) and _is_storable(value))
_POSITIVE = ("a positive number", _positive)
_NOT_NEGATIVE = ("a finite number >= 0", _not_negative)
_MOST = 10**9  # epochs, samples: beyond what anybody waits for
_COUNT = ("an integer from 1 to 10**9", lambda value: 1 <= value <= _MOST)
_EPOCH = ("an integer from 0 to 10**9", lambda value: 0 <= value <= _MOST)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a training run.

    Raises:
        UserError: a value of the wrong type or out of its range; the message names the setting.
    """

    dataset: str = setting("av-digits", "name of a bundled dataset, or path of your own data", *_TEXT)
    modalities: str | None = setting(
        None, "modalities to take, by commas; none for the dataset's own choice, which is all but for emoji", *_TEXT
    )
    scale: str = setting(
        "none",
        "of the inputs: none, as they are; or standard, mean 0 and deviation 1 of each feature in the training split",
        *_one_of("none", "standard"),
    )
    fusion: str = setting("late", "how the network joins the modalities (agm.models.fusions)", *_TEXT)
    encoders: str = setting(
        "small",
        "what reads each modality: small, by its shape; or resnet18, lenet, transformer-8, transformer-2, as published",
        *_one_of(*encoders),
    )
    width: int = setting(64, "features that each encoder gives, where it leaves a choice", *_up_to(2**16))
    init: str = setting(
        "torch",
        "initial weights: torch's, or xavier, by which AGM's authors draw those for CREMA-D",
        *_one_of("torch", "xavier"),
    )
    validation: float = setting(
        0.0,
        "share of the training split that is held out and watched; the seed draws it",
        "a number from 0 to below 1",
        lambda value: 0 <= value < 1,
    )
    method: str = setting(
        "agm",
        "a strategy (agm, joint ...); unimodal:NAME, a network of this modality; alone:NAME, the whole one on it",
        *_TEXT,
    )
    alpha: float = setting(1.5, "method agm: strength of the modulation; 0 is joint training", *_NOT_NEGATIVE)
    max_gap: float = setting(
        10.0,
        "method agm: cap on the reference ratio minus the ratio; inf for none",
        "a number > 0",
        lambda value: value > 0,
    )
    masked: str = setting(
        "shared",  # exact, which is published, breaks down now and then: docs/study
        "method agm: how masked logits are computed while training: shared, or exact, as published",
        *_one_of("exact", "shared"),
    )
    start: int = setting(0, "first epoch in which the method modulates", *_EPOCH)
    stop: int | None = setting(None, "first epoch after the modulation; none for no end", *_EPOCH)
    epochs: int = setting(40, "passes over the training split", *_COUNT)
    batch_size: int = setting(
        64,
        "samples a step at most; an epoch is cut evenly",
        "an integer from 2 to 10**9",
        lambda value: 2 <= value <= _MOST,
    )
    optimizer: str = setting("sgd", "sgd, adam or adamw", *_one_of("sgd", "adam", "adamw"))
    lr: float = setting(0.02, "learning rate; for adam and adamw one of 0.001 is usual", *_POSITIVE)
    momentum: float = setting(0.9, "momentum of sgd", "a number from 0 to below 1", lambda value: 0 <= value < 1)
    weight_decay: float = setting(1e-4, "L2 penalty of sgd and adam, decay of adamw", *_NOT_NEGATIVE)
    schedule: str = setting(
        "cosine",
        "learning rate over the epochs: cosine (to 0), constant, step, or plateau of the validation loss",
        *_one_of("cosine", "constant", "step", "plateau"),
    )
    step_epochs: int = setting(70, "schedule step: epochs between two reductions", *_COUNT)
    step_factor: float = setting(
        0.1, "schedule step and plateau: factor of a reduction", "a number > 0 and <= 1", lambda value: 0 < value <= 1
    )
    patience: int = setting(10, "schedule plateau: epochs without a lower loss before a reduction", *_EPOCH)
    early_stopping: int | None = setting(
        None, "end after so many epochs without a higher validation accuracy; none for no such end", *_COUNT
    )
    choose: str = setting(
        "last",
        "which weights are evaluated: of the last epoch, or of the best one on the validation split",
        *_one_of("last", "best"),
    )
    class_weights: str = setting(
        "none",
        "weights in the loss: none, or balanced, by which rare classes and labels count as much as frequent ones",
        *_one_of("none", "balanced"),
    )
    error: str = setting(
        "squared", "loss of a target of numbers: squared or absolute error", *_one_of("squared", "absolute")
    )
    clip_norm: float | None = setting(None, "largest norm of the whole gradient; none for no limit", *_POSITIVE)
    clip_above: float = setting(
        0.0,
        "clip only in steps in which an entry of the head's gradient is larger than this; AGM's authors have 1",
        *_NOT_NEGATIVE,
    )
    seed: int = setting(
        0,
        "of the weights, the dropout and the order of the samples",
        "an integer from 0 to 2**32 - 1",
        lambda value: 0 <= value < 2**32,
    )
    device: str = setting("auto", "cpu, cuda, cuda:1 ...; auto takes cuda where there is one", *_TEXT)
    threads: int | None = setting(None, "CPU threads of torch; none for torch's own choice", *_up_to(1024))
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, OPTIONS, _plain_options(self.options))
        object.__setattr__(self, "fusion", aliases.get(self.fusion, self.fusion))
        for spec in settings():
            value = _typed(spec.name, getattr(self, spec.name))
            object.__setattr__(self, spec.name, value)
            if value is not None and not spec.metadata["valid"](value):
                raise _unexpected(spec.name, spec.metadata["expected"], value)
        if self.stop is not None and self.stop <= self.start:
            raise UserError(
                f"Expected setting `stop` to be greater than `start` ({self.start}), but got {self.stop}. "
                "Epochs start <= epoch < stop are modulated; for none of them, use method joint."
            )

    def resolved(self) -> Config:
        """The same settings with device, threads and a path of data made definite for this machine.

        Raises:
            UserError: the device does not exist here.
        """
        is_path = self.dataset not in available() and os.path.exists(self.dataset)
        dataset = os.path.abspath(self.dataset) if is_path else self.dataset
        threads = torch.get_num_threads() if self.threads is None else self.threads
        return replace(self, dataset=dataset, device=_device(self.device), threads=threads)


def _plain_options(options: Any) -> dict[str, Any]:
    """A copy that a TOML file can hold and no setting is none in."""
    if not isinstance(options, Mapping):
        raise UserError(
            f"Expected the options of the method to be a table, but got {options!r}. Write [options] and below it a "
            "line NAME = VALUE for each."
        )
    return {str(name): _plain_option(str(name), value) for name, value in options.items()}


def _plain_option(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _plain_options(value)
    if isinstance(value, (str, bool, int, float)):
        return value
    raise UserError(
        f"Expected option `{name}` to be a number, true or false, a text, or a table of them, but got {value!r}."
    )


@cache  # otherwise all annotations are evaluated anew for each setting
def kind_of(name: str) -> tuple[type, bool]:
    """The type of a setting, and whether it may be none."""
    hint = get_type_hints(Config)[name]
    kinds = get_args(hint)
    if not kinds:
        return hint, False
    return next(kind for kind in kinds if kind is not NoneType), True


def _typed(name: str, value: Any) -> Any:
    kind, optional = kind_of(name)
    if value is None and optional:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _unexpected(name, {str: "a string", int: "an integer", float: "a number"}[kind], value)
    return value


def _unexpected(name: str, expected: str, value: Any) -> UserError:
    option = "--" + name.replace("_", "-")
    return UserError(
        f"Expected setting `{name}` to be {expected}, but got {value!r}. "
        f"Set it with {option} or in the configuration file."
    )


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # there is a device that has no values
        if device.type == "cpu" and device.index:
            raise RuntimeError("there is one cpu")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Expected setting `device` to be a device of this machine, but got {name!r} ({reason}). "
            "Use --device auto or --device cpu."
        ) from error
    return str(device)


def read_table_of(path: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """A table of a TOML file that `read_config` accepted; empty if it is not there.

    Raises:
        UserError: it is no table.
    """
    table = read_toml(path).get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"Expected [{name}] in {str(path)!r} to be a table, but got {table!r}. Correct the file.")
    return table


def read_config(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Config:
    """Settings from a TOML file, as `write_config` writes it.

    Args:
        path: the file; settings that it does not name have their defaults; [environment] and [compare] are not read.
        overrides: settings that win over the file.

    Raises:
        UserError: no such file, no TOML, an unknown setting, or a value that a setting does not take.
    """
    values = read_toml(path)
    for table in TABLES:
        values.pop(table, None)
    known = [spec.name for spec in fields(Config)]
    for key in values:
        if key not in known:
            raise UserError(_unknown(key, path, known))
    try:
        Config(**values)  # the file alone, so that its mistakes are not laid on the command line
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    merged = {**values, **(overrides or {})}
    merged[OPTIONS] = {**values.get(OPTIONS, {}), **(overrides or {}).get(OPTIONS, {})}
    return Config(**merged)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Contents of a TOML file.

    Raises:
        UserError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(read_text(Path(path)))
    except OSError as error:
        raise UserError(
            f"Expected {str(path)!r} to be a readable configuration file, but got: {error.strerror}. "
            "Give the path of a TOML file, such as the config.toml of a run."
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"Expected {str(path)!r} to be a TOML file, but got: {error}. Correct the file.") from error
    except ValueError as error:
        raise UserError(f"{error} Give the path of a TOML file, such as the config.toml of a run.") from error


def _unknown(key: str, path: str | os.PathLike[str], known: list[str]) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    hint = f"Did you mean `{near[0]}`? " if near else ""
    return f"Expected {str(path)!r} to hold known settings, but got `{key}`. {hint}Known: {', '.join(known)}."


def write_config(
    path: str | os.PathLike[str], config: Config, environment: Mapping[str, str], *, replace_file: bool = False
) -> None:
    """Write `config` as TOML with a comment a setting, whole or not at all.

    Args:
        path: the file.
        config: its settings; those that are none are left out.
        environment: what the run met (versions, devices), for people to read.
        replace_file: whether it may be there.

    Raises:
        FileExistsError: it is, and may not.
    """
    if not replace_file and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    text = config_text(config, "agm train --config THIS_FILE", {ENVIRONMENT: dict(environment)})
    write_text(Path(path), text)


def config_text(
    config: Config, command: str, tables: Mapping[str, Mapping[str, Any]], without: tuple[str, ...] = ()
) -> str:
    """`config` as TOML.

    Args:
        config: its settings; those that are none are left out.
        command: what repeats the run.
        tables: written behind the settings.
        without: settings that are left out.
    """
    import tomli_w

    lines = [f"# Repeat this run:  {command}", ""]
    for spec in settings():
        if spec.name in without:
            continue
        value = getattr(config, spec.name)
        comment = "# " + spec.metadata["help"]
        if value is None:
            lines.append(f"# {spec.name}: none  {comment}")
        else:
            lines.append(f"{tomli_w.dumps({spec.name: value}).strip()}  {comment}")
    if config.options:
        options = tomli_w.dumps({OPTIONS: dict(config.options)}).strip()
        lines += ["", "# Of the method; those that are not named have its defaults.", options]
    for name, table in tables.items():
        remark = ["# For information only."] if name == ENVIRONMENT else []
        lines += ["", *remark, tomli_w.dumps({name: dict(table)}).rstrip()]
    return "\n".join([*lines, ""])


def differences(config: Config, other: Config) -> list[str]:
    """Settings in which two configurations differ, as "name (value, other value)"."""
    left, right = asdict(config), asdict(other)
    return [f"{name} ({left[name]!r}, {right[name]!r})" for name in left if left[name] != right[name]]
