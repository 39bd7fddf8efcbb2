"""Trains in processes that are killed, at some moment after a checkpoint of theirs, until one is through.

Run by test_resume.py. Forked from a process that has imported everything, so that a life takes milliseconds.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from agm.training import read_config, train
from agm.training.checkpoint import load_checkpoint
from agm.training.trainer import check_settings

KILLS = 3


def main(config_file: str, folder: str) -> None:
    torch.set_num_threads(1)
    config, chance, checkpoint = read_config(config_file), random.Random(0), Path(folder) / "checkpoint.pt"
    check_settings(config)  # whatever is imported late
    inside = 0
    for life in range(KILLS + 1):
        before = _version(checkpoint)
        child = os.fork()
        if not child:
            _live(config, folder, checkpoint.exists())
        if life == KILLS:
            assert os.waitpid(child, 0)[1] == 0
            break
        deadline = time.monotonic() + 20
        while _version(checkpoint) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))  # into the next step, the next write, the end of the epoch ...
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended before it was killed"
        inside += load_checkpoint(checkpoint)["unfinished"] is not None  # whole after every kill
    print(inside)


def _live(config: object, folder: str, resume: bool) -> None:
    status = 1
    try:
        train(config, folder, resume=resume, checkpoint_every=1)  # type: ignore[arg-type]
        status = 0
    finally:
        os._exit(status)


def _version(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


if __name__ == "__main__":
    main(*sys.argv[1:])
