"""Runs in other processes, which end with the one that asked for them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.observer import Observer
from agm.training.train_or_none import train_or_none

__all__ = ["killed_is_told", "process_pool", "trained_ahead", "wait_for"]

TICK = 0.2  # seconds

T = TypeVar("T")


@contextmanager
def trained_ahead(requests: Sequence[tuple[Config, Path]], jobs: int) -> Iterator[Mapping[Path, Future[None]]]:
    """Folder -> the run in another process that will leave it finished; none where `jobs` is 1.

    Args:
        requests: settings and folders of runs.
        jobs: processes at a time.
    """
    if jobs == 1:
        yield {}
        return
    with process_pool(jobs) as pool:
        with killed_is_told():
            runs = {folder: pool.submit(_train_quietly, config, folder) for config, folder in requests}
        yield runs


@contextmanager
def process_pool(jobs: int) -> Iterator[Executor]:
    """Processes that end when the block does, at once where it raises, and when this process is killed.

    Args:
        jobs: how many at a time.
    """
    # A forked child would inherit the threads' locks of torch.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with _Pool(jobs, mp_context=context, initializer=_begin, initargs=(os.getpid(), stop)) as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def wait_for(run: Future[T]) -> T:
    """What a run in another process returns, when it has ended.

    Raises:
        UserError: its process was ended.
    """
    with killed_is_told():
        return run.result()


@contextmanager
def killed_is_told() -> Iterator[None]:
    """For what is handed to other processes, or waited for.

    Raises:
        UserError: one of them was ended.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "Expected the processes of --jobs to end by themselves, but one was killed, perhaps for its memory. "
            "The same command goes on from what is finished; use a smaller --jobs if it happens again."
        ) from error


class _Pool(ProcessPoolExecutor):
    """One whose processes do not hear of Ctrl-C while they begin, before they ignore it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if os.name != "posix":
            return super().submit(fn, *args, **kwargs)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))  # a process that is begun here inherits it
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()


def _end_with(parent: int, stop: Any) -> None:
    """A run can be ended at any moment and goes on from its last checkpoint."""
    while os.getppid() == parent and not stop.is_set():
        time.sleep(TICK)
    os._exit(1)


def _train_quietly(config: Config, folder: Path) -> None:
    train_or_none(config, folder, Observer())
