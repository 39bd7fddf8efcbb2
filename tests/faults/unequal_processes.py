"""One of two processes that train together, of which the second leaves, stalls or has fewer batches.

Run by test_processes.py: rank, folder of the store, what happens. Prints the error that ends it, if one does.
"""

import logging
import os
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import agm


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.o = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.o(torch.relu(self.p(left) + self.q(right)))


def main(rank: int, folder: str, what: str) -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=2)
    )
    torch.manual_seed(0)
    model = agm.AGM(Net(), ("left", "right"))
    wrapped = DistributedDataParallel(model) if what == "join" else model
    try:
        with Join([wrapped]) if what == "join" else nullcontext():
            for _ in range(4 if rank == 0 else 2):
                target = torch.randint(0, 3, (5,))
                logits = wrapped(left=torch.randn(5, 4), right=torch.randn(5, 4), target=target)
                F.cross_entropy(logits, target).backward()
    except (RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], flush=True)
        os._exit(0)  # without the other process gloo does not always end in order
    if what == "stall" and rank == 1:
        time.sleep(5)
    print("finished", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
