"""One of several processes: runs all checks and writes what went wrong in each."""

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from .checks import CHECKS


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    found = dict.fromkeys(CHECKS, "was not reached")
    for name, check in CHECKS.items():
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


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
