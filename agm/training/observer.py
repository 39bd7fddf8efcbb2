"""Who is told how a run goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agm.training.config import Config
from agm.training.errors import DivergedError
from agm.training.run_folder import Row

__all__ = ["Observer"]


class Observer:
    """Is told how a run goes; does nothing. Override what you want to show."""

    def started(self, folder: Path, config: Config, epoch: int, steps: int) -> None:
        """Training begins at `epoch` (0, or later in a resumed run), with `steps` steps an epoch."""

    def described(self, lines: Sequence[str]) -> None:
        """Before the first epoch: what is trained on what (`agm.training.described`)."""

    def doubted(self, doubt: str) -> None:
        """Something in the data may be meant otherwise than it is read (`agm.training.doubts`)."""

    def stepped(self) -> None:
        """A step was queued; nothing of it has been read from the device.

        Called as often in a resumed run: at once for the steps that its unfinished epoch had taken.
        """

    def epoch_finished(self, row: Row) -> None:
        """`row` of metrics.csv and the checkpoint are written."""

    def diverged(self, error: DivergedError) -> None:
        """The run ended without a result, and those that it is compared with go on."""
