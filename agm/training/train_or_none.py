"""A run among many: where it diverges, the others go on."""

from __future__ import annotations

from pathlib import Path

from agm.training.config import Config
from agm.training.errors import DivergedError
from agm.training.observer import Observer
from agm.training.result import Final, Result
from agm.training.run_folder import RunFolder
from agm.training.trainer import train
from agm.training.writing import check_no_link

__all__ = ["train_or_none"]


def train_or_none(config: Config, folder: Path, observer: Observer, final: Final = "test") -> Result | None:
    """`train`, or what is left to train in `folder`; None for a run that diverges, of which `observer` is told."""
    check_no_link(folder)
    try:
        return train(config, folder, resume=RunFolder(folder).holds_run(), observer=observer, final=final)
    except DivergedError as error:
        observer.diverged(error)
        return None
