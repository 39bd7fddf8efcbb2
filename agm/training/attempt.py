"""A run among many: where it diverges, the others go on."""

from __future__ import annotations

from pathlib import Path

from agm.training.config import Config
from agm.training.records import RunFolder
from agm.training.trainer import DivergedError, Final, Observer, Result, train

__all__ = ["attempt"]


def attempt(config: Config, folder: Path, observer: Observer, final: Final = "test") -> Result | None:
    """`train`, or what is left to train in `folder`; None for a run that diverges, of which `observer` is told."""
    try:
        return train(config, folder, resume=RunFolder(folder).holds_run(), observer=observer, final=final)
    except DivergedError as error:
        observer.diverged(error)
        return None
