"""A small dataset, and commands on it, in this process and in others."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SOAK = int(os.environ.get("AGM_SOAK", "1"))  # how many times as many random faults; `make soak` sets it

SETTINGS = ("--epochs", "2", "--width", "6", "--batch-size", "16", "--threads", "1", "--device", "cpu")


def arrays() -> dict[str, np.ndarray]:
    draw, target = np.random.default_rng(0), np.arange(48) % 3
    return {
        "a": (np.eye(3)[target] + 0.6 * draw.normal(size=(48, 3))).astype("f4"),
        "b": draw.normal(size=(48, 4)).astype("f4"),
        "target": target,
        "split": np.array(["train"] * 32 + ["test"] * 16),
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_pictures: None) -> Path:
    """An empty folder with the dataset d.npz, which is the current one."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "d.npz", **arrays())
    return tmp_path


Ended = tuple[int, str, str]


@pytest.fixture
def agm(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command in this process; returns its status, output, and what it says on stderr."""
    from agm.training.__main__ import main

    def run(*words: object) -> Ended:
        capsys.readouterr()
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def refused(agm: Callable[..., Ended]) -> Callable[..., str]:
    """The one line of a command that the user must mend."""

    def run(*words: object) -> str:
        status, _, said = agm(*words)
        assert status == 2, said
        assert said.count("\n") == 1, said
        assert "Traceback" not in said
        return said

    return run


class Forked:
    """A command in a process of its own, which has imported everything already.

    Args:
        words: of the command.
        before: what the process does first.
    """

    def __init__(self, *words: object, before: Callable[[], None] = lambda: None) -> None:
        from agm.training import cli  # not in the child, which may be killed while it imports

        self.status: int | None = None
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._said = Path(file.name)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            status = 99
            try:
                number = os.open(self._said, os.O_WRONLY)
                os.dup2(number, 1)
                os.dup2(number, 2)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                before()
                status = cli.run([str(word) for word in words])
            except BaseException:
                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    with suppress(OSError, ValueError):
                        stream.flush()
                os._exit(status)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def end(self, timeout: float = 60) -> tuple[int, str]:
        """Its status, and what it said, once it has ended."""
        deadline = time.monotonic() + timeout
        while not self.poll():
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.002)
        assert self.status is not None
        return self.status, self._said.read_text()

    def kill(self) -> None:
        if not self.poll():
            os.kill(self.pid, signal.SIGKILL)
        self.end()


def started(place: Path, *words: object, **settings: Any) -> "subprocess.Popen[str]":
    """A command in a process of its own."""
    command = [sys.executable, "-m", "agm.training", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings.pop("env", {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.Popen(command, cwd=place, env=environment, text=True, **streams)
