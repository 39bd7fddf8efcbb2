"""How a command ends: its exit status, and what it says beside its tables."""

from __future__ import annotations

import importlib.util

import click

from agm.training.errors import UserError
from agm.training.printable import printable

__all__ = ["DIVERGED", "INTERRUPTED", "USER_ERROR", "interrupted", "require"]

USER_ERROR, DIVERGED, INTERRUPTED = 2, 1, 130


def interrupted(what: str, how: str | None) -> None:
    how = f" Continue with: {how}" if how else " Nothing was written."
    click.echo(printable(what + how), err=True)
    raise click.exceptions.Exit(INTERRUPTED)


def require(*packages: str) -> None:
    missing = [name.replace("_", "-") for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"This command needs {', '.join(missing)}. Install with: pip install 'agm-torch[train]'")
