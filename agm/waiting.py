"""Collective operations of a step: who waits for the others says so, and who waited in vain says for what."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from torch.distributed import ProcessGroup

__all__ = ["waiting"]

LONGEST = 30.0  # seconds of waiting in silence, or half of the group's timeout where that is shorter
TICK = 0.25  # seconds between two looks

_logger = logging.getLogger("agm")


class _Watch:
    """A thread that tells, once for each wait, that this process waits; begun by the first wait of a process."""

    def __init__(self) -> None:
        self._process = 0
        self._waits: dict[int, tuple[float, str]] = {}  # thread -> when to tell, and what

    def begin(self, patience: float, text: str) -> None:
        if self._process != os.getpid():  # threads do not survive a fork
            self._process, self._waits = os.getpid(), {}
            threading.Thread(target=self._look, name="agm-waiting", daemon=True).start()
        self._waits[threading.get_ident()] = time.monotonic() + patience, text

    def end(self) -> None:
        self._waits.pop(threading.get_ident(), None)

    def _look(self) -> None:
        while True:
            time.sleep(TICK)
            for thread, (due, text) in list(self._waits.items()):
                if time.monotonic() >= due and self._waits.pop(thread, None) is not None:
                    _logger.warning(text)


_watch = _Watch()


@contextmanager
def waiting(group: ProcessGroup, device: torch.device, what: str) -> Iterator[None]:
    """Inside, this process waits for the others of `group` to do the same.

    Where the device is a GPU the host does not wait; NCCL's own watchdog tells of a stall there.

    Args:
        group: the processes that must all do it.
        device: of the tensors that are exchanged.
        what: is done, for people: "the scores of a training step".

    Raises:
        RuntimeError: another process has ended, or the group's timeout has passed.
    """
    timeout = _timeout(group, device)
    patience = min(LONGEST, timeout / 2)
    _watch.begin(
        patience,
        f"Process {distributed.get_rank()} has waited {patience:.3g} s for the other processes of its group, with "
        f"which it exchanges {what}. One of them may have run out of batches, be slow, or hang. "
        f"The group's timeout ends this process after {timeout:.0f} s.",
    )
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"Expected every process of the group to exchange {what}, but another process ended, ran out of batches or "
            f"does something else: {reason} Give all processes as many batches, enter torch's Join with "
            "agm.joining.joinable(model), or let each process score its own batches with process_group=False."
        ) from error
    finally:
        _watch.end()


def _timeout(group: ProcessGroup, device: torch.device) -> float:
    """Seconds after which the group gives up."""
    options = getattr(group._get_backend(device), "options", None)
    found = getattr(options, "_timeout", None)
    return float((found or distributed.constants.default_pg_timeout).total_seconds())
