"""Where the runs of a study are done: in this process, in others of this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agm.training.errors import UserError
from agm.training.workers import process_pool

__all__ = ["Engine", "engine"]


@dataclass(frozen=True)
class Engine:
    """Who trains.

    Args:
        executor: takes calls, as `concurrent.futures` has it.
        capacity: how many calls are handed over at a time.
    """

    executor: Executor
    capacity: int


@contextmanager
def engine(jobs: int = 1, scheduler: str | None = None) -> Iterator[Engine]:
    """An engine, which ends with the block.

    Args:
        jobs: processes of this machine; 1: this one.
        scheduler: address of a Dask scheduler, such as "tcp://10.0.0.1:8786" (`dask scheduler`; for SLURM and others
            that of a `dask_jobqueue` cluster), in the place of `jobs`. Its workers need agm-torch[train], and the
            files of the data under the same paths.

    Raises:
        UserError: no such scheduler, or Dask is not installed.
    """
    if scheduler is not None:
        with _cluster(scheduler) as found:
            yield found
    elif jobs == 1:
        yield Engine(_Here(), 1)
    else:
        with process_pool(jobs) as pool:
            yield Engine(pool, 2 * jobs)  # so that none waits for this process


class _Here(Executor):
    """Calls at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _cluster(address: str) -> Iterator[Engine]:
    try:
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    except ModuleNotFoundError as error:
        raise UserError(
            "Expected Dask to be installed for --scheduler, but it is not. Install it with: "
            "pip install 'agm-torch[cluster]'"
        ) from error
    try:
        get_address_host_port(address)  # a client of an address that does not parse is closed for 20 seconds
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Expected a Dask scheduler at {address!r}, but got: {error}. Start one with `dask scheduler`, and workers "
            "with `dask worker ADDRESS`."
        ) from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise UserError(
                f"Expected the scheduler at {address!r} to have workers, but got none. "
                f"Start some with `dask worker {address}`."
            )
        yield Engine(client.get_executor(), 2 * threads)
