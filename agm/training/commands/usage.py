"""What to write instead, where a command line is not what a command takes."""

from __future__ import annotations

import re
from pathlib import Path

import click

from agm.data import available

__all__ = ["advice"]

_EXTRA = re.compile(r"unexpected extra arguments? \((.*)\)")


def advice(error: click.UsageError) -> str:
    """A sentence with what was probably meant; "" where nothing is known."""
    if isinstance(error, click.BadParameter) and error.param is not None and error.param.name == "seeds":
        return "Give the number of runs, and the first seed with --seed: --seeds 3 --seed 0."
    found = _EXTRA.search(error.format_message())
    if found is None or error.ctx is None or "modalities" not in {param.name for param in error.ctx.command.params}:
        return ""
    first, given = found[1].split(" ")[0], error.ctx.get_parameter_source("dataset")
    is_data = first in available() or Path(first).suffix in (".npz", ".pt") or Path(first).exists()
    if is_data and given in (None, click.core.ParameterSource.DEFAULT):
        return f"Give a dataset with --dataset {first}."
    return "Write a list with commas, such as audio,image, and a setting as NAME=VALUE."
