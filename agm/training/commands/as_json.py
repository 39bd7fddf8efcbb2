"""`--json`: the figures of a command for programs, alone on the standard output."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from agm.training.compare import Comparison
from agm.training.console import Terminal
from agm.training.exports import COLUMNS, comparison_row
from agm.training.result import Result

__all__ = ["AS_JSON", "comparison_values", "result_values", "terminal", "write_json"]

AS_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print the figures as one JSON value; all else goes to the standard error."
)


def terminal(as_json: bool) -> Terminal:
    """Where a command shows its progress and its tables."""
    return Terminal(stderr=as_json)


def write_json(values: Any) -> None:
    """One value; what there is no figure for (NaN, infinity) is null."""
    click.echo(json.dumps(_plain(values), indent=2))


def result_values(result: Result) -> dict[str, Any]:
    """A run: its folder, its settings, and the figures by their names in metrics.csv."""
    return {
        "folder": str(result.folder),
        "settings": asdict(result.config),
        "epochs": len(result.history),
        "samples": result.evaluation.samples,
        "modalities": list(result.modalities),
        "figures": result.evaluation.columns(),
    }


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """A row of a comparison; shares as they are, not in percent."""
    found = dict(zip(COLUMNS, comparison_row(comparison), strict=True))
    return {"fusion": comparison.fusion, **found, "values": list(comparison.values)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
