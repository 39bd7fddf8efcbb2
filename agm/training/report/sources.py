"""What a folder is, by the files that `agm` leaves in it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from agm.training.errors import UserError
from agm.training.run_folder import RunFolder

__all__ = ["Kind", "kind_of_folder"]

Kind = Literal["run", "comparison", "study", "competition"]


def kind_of_folder(folder: Path) -> Kind:
    """Whether a folder holds a run, a comparison, a study or a measurement of competition strength.

    Raises:
        UserError: none of them; the message says what is missing.
    """
    if (folder / "rows.jsonl").exists() or (folder / "results.csv").exists():
        return "study"
    if (folder / "compare.csv").exists():
        return "comparison"
    # A run that was measured while it trained has that table as well.
    if (folder / "competition.toml").exists() and (folder / "competition.csv").exists():
        return "competition"
    if RunFolder(folder).config.exists():
        return "run"
    raise UserError(
        f"Expected {str(folder)!r} to be a folder of agm train, agm compare or agm competition, but got "
        f"{_found(folder)}. Give such a folder; the same command finishes a comparison that was interrupted."
    )


def _found(folder: Path) -> str:
    if not folder.exists():
        return "nothing there"
    if not folder.is_dir():
        return "a file"
    return "neither config.toml nor compare.csv, rows.jsonl or competition.toml there"
