"""Processes of `agm compare --jobs`: they end with the command, however that ends, and the same command goes on."""

import signal
import subprocess
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from agm.training.errors import UserError
from agm.training.workers import process_pool, wait_for

from .conftest import SETTINGS, SOAK, started

WORDS = ("compare", "--methods", "joint,agm", "--seeds", "1", "--jobs", "2", "--dataset", "d.npz", *SETTINGS)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text().rsplit(")", 1)[1].split()
            worker = b"spawn_main" in (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat[1]) == pid and stat[0] != "Z" and worker:
            found.append(int(path.name))
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _begun(place: Path, after: float) -> "tuple[subprocess.Popen[str], list[int]]":
    """The command, and its two workers, which have written checkpoints since."""
    process = started(place, *WORDS, "--epochs", "5000", "--out", "all")
    while sum(path.stat().st_mtime > after for path in place.rglob("checkpoint.pt")) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    workers = _children(process.pid)
    assert len(workers) == 2
    return process, workers


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_and_interrupted(place: Path) -> None:
    """A command is killed: its workers end by themselves, and the same command goes on at once. So does Ctrl-C."""
    process, workers = _begun(place, 0.0)
    process.kill()
    process.communicate()
    if SOAK == 1:
        deadline = time.monotonic() + 10
        while any(map(_is_alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(_is_alive, workers))
        return
    process, more = _begun(place, time.time())
    assert not any(map(_is_alive, workers))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said == "Interrupted. Continue with: the same command: finished runs are not repeated\n"
    assert not any(map(_is_alive, more))


def test_a_worker_that_was_killed() -> None:
    run: Future[None] = Future()
    run.set_exception(BrokenProcessPool())
    with pytest.raises(UserError, match="one was killed"):
        wait_for(run)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks")
def test_processes_that_begin_do_not_hear_of_ctrl_c() -> None:
    """A terminal sends it to them too, and they import for seconds before they can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with process_pool(1) as pool:
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
