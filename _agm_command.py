"""Where the command `agm` begins: outside the package, whose import takes seconds in which people press Ctrl-C."""

import os
import signal
from collections.abc import Sequence
from types import FrameType

_INTERRUPTED = 130  # as in agm.training.commands.outcome, which cannot be imported yet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # in the background it may be ignored
        # Not by an exception, of which an import makes another one: nothing has been written yet.
        signal.signal(signal.SIGINT, _end)
    from agm.training.__main__ import main as run

    return run(arguments, imported=lambda: signal.signal(signal.SIGINT, before))


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"agm: error: interrupted\n")
    os._exit(_INTERRUPTED)
