"""The options that commands share: one for every setting, and what stands in files and lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import click

from agm.training.config import kind_of
from agm.training.config import settings as all_settings
from agm.training.errors import UserError
from agm.training.methods import OF_ONE
from agm.training.variants import parse_value

__all__ = [
    "CONFIG_FILE",
    "OPTION",
    "Penalty",
    "choice",
    "given_options",
    "refuse_given",
    "refuse_unused",
    "setting_options",
    "was_given",
]


class _NoneOr(click.ParamType):  # type: ignore[type-arg]
    """A number, or the word none."""

    def __init__(self, kind: Any) -> None:
        self.name, self._kind = f"{kind.name}|none", kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "none" else self._kind.convert(value, param, ctx)


class Penalty(click.ParamType):  # type: ignore[type-arg]
    """A number, or the word cv."""

    name = "float|cv"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "cv" else click.FLOAT.convert(value, param, ctx)


def setting_options(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
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


CONFIG_FILE = click.option(
    "--config", "config_file", metavar="FILE", help="TOML file of settings; options given here win over it."
)
OPTION = click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="Setting of the method's own, such as alpha=0.3 for ogm-ge; may be given several times.",
)


def given_options(options: Sequence[str]) -> dict[str, Any]:
    """{"options": ...} from NAME=VALUE, if there are any."""
    found = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"Expected --option to be NAME=VALUE, but got {text!r}. For example: --option alpha=0.3.")
        found[name.strip().replace("-", "_")] = parse_value(value.strip())
    return {"options": found} if found else {}


def refuse_unused(settings: Mapping[str, Any], method: str) -> None:
    """A setting of AGM that was given for another strategy would silently do nothing."""
    if method in ("agm", "joint") or method.partition(":")[0] in OF_ONE:
        return
    for name in ("alpha", "max_gap", "masked"):
        if name in settings:
            raise UserError(
                f"Expected setting `{name}` with method agm alone, but got it with {method!r}. "
                f"Its own settings are options: --option {name}=VALUE."
            )


def was_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def choice(name: str, value: str, recorded: Mapping[str, Any], read: Callable[[str], list[str]]) -> list[str]:
    """A list from the command line, from the file of a comparison, or the default, in this order."""
    if not was_given(name) and name in recorded:
        return [str(entry) for entry in recorded[name]]
    return read(value)


def refuse_given(*allowed: str, reason: str) -> None:
    """See that the user gave no other options than these.

    Raises:
        UserError: one was given.
    """
    for parameter in click.get_current_context().command.params:
        if parameter.name is not None and parameter.name not in allowed and was_given(parameter.name):
            option = parameter.opts[0]
            raise UserError(f"Expected no option {option}, since {reason}, but got it. Leave {option} out.")
