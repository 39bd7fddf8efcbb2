"""Several processes, of which each runs all checks and writes what went wrong in each."""

import json
import multiprocessing
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from .checks import CHECKS, CHECKS_OF_TWO


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    checks = CHECKS_OF_TWO if size == 2 else CHECKS
    found = dict.fromkeys(checks, "was not reached")
    for name, check in checks.items():
        try:
            check(rank, size)
            distributed.barrier()  # fails if another process has gone
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
            break  # the others wait for what is no longer to come, until this process ends
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if all(text == "" for text in found.values()):
        distributed.destroy_process_group()


def _logged(rank: int, size: int, folder: Path) -> None:
    with open(folder / f"{rank}.txt", "w") as file:  # not a pipe, which could be full before anybody reads it
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(rank, size, folder)


if __name__ == "__main__":
    size, folder = int(sys.argv[1]), Path(sys.argv[2])
    fork = multiprocessing.get_context("fork")  # what they import is imported once
    processes = [fork.Process(target=_logged, args=(rank, size, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
