"""The processes that train one model together, each on its share of the batch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from agm.shapley.weights import MAX_MODALITIES
from agm.waiting import waiting

__all__ = ["CAPACITY", "Peers", "check_group", "is_sharded", "joined_totals", "summed"]

CAPACITY = 3 * MAX_MODALITIES + 4  # totals of a step at most, how many they are, and how many processes gave them

_JOINS: set[str] = set()  # names of the groups in which a process may have no batch


def check_group(process_group: object) -> None:
    """What the functions take.

    Raises:
        TypeError: it is neither None nor a group of which this process is a member.
    """
    if process_group is not None and not isinstance(process_group, ProcessGroup):
        raise TypeError(
            "Expected argument `process_group` to be a torch.distributed.ProcessGroup of which this process is a "
            f"member, or None, but got {process_group!r}."
        )


def summed(totals: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Totals of one batch, summed in place over the processes of a group."""
    if process_group is None:
        return totals
    if torch.compiler.is_compiling():
        distributed.all_reduce(totals, group=process_group)
    elif process_group.group_name in _JOINS:
        # A process without a batch takes part as well, and does not know how many numbers there are.
        count = len(totals)
        padded = torch.cat([totals, totals.new_zeros(CAPACITY - count - 2), totals.new_tensor([count, 1])])
        _all_reduce(padded, process_group)
        totals.copy_(padded[:count])
    else:
        _all_reduce(totals, process_group)
    return totals


def joined_totals(device: torch.device, group: ProcessGroup) -> tuple[Tensor, Any]:
    """The share of a process without a batch: what becomes (`CAPACITY`,) totals, and the work to wait for."""
    totals = torch.zeros(CAPACITY, dtype=torch.float64, device=device)
    return totals, distributed.all_reduce(totals, group=group, async_op=True)


def _all_reduce(totals: Tensor, group: ProcessGroup) -> None:
    with waiting(group, totals.device, "the scores of a training step"):
        distributed.all_reduce(totals, group=group)


class Peers:
    """The group of a module: looked up in every step, since it may be there only after the module.

    Args:
        process_group: a group; None: the default one, if `torch.distributed` is initialised with more than one
            process; False: none.

    Raises:
        TypeError: it is something else.
    """

    def __init__(self, process_group: ProcessGroup | Literal[False] | None = None) -> None:
        if process_group is not False:
            check_group(process_group)
        self._given = process_group
        self._joined: ProcessGroup | None = None

    def __deepcopy__(self, memo: Any) -> "Peers":
        return Peers(self._given)  # a group cannot be copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_joined": None}

    def join(self, group: ProcessGroup) -> None:
        """In a Join these processes exchange totals in `group`, which has no other use."""
        self._joined = group
        _JOINS.add(group.group_name)

    def leave(self) -> None:
        """The Join has ended."""
        self._joined = None

    @property
    def group(self) -> ProcessGroup | None:
        """None where this process is alone."""
        if self._joined is not None and self._given is not False:
            return self._joined
        if self._given is False or not (distributed.is_available() and distributed.is_initialized()):
            return None
        group = distributed.group.WORLD if self._given is None else self._given
        return group if group is not None and distributed.get_world_size(group) > 1 else None

    @property
    def joined(self) -> bool:
        """Whether a process may be without a batch."""
        return self._joined is not None

    @property
    def together(self) -> bool:
        return self.group is not None

    def least(self, value: int, device: torch.device) -> int:
        """The smallest value that a process has. It waits for all of them and for the device.

        In a Join, where some may have no batch to look at, each goes by what it finds itself. Layers that exchange
        statistics, which must agree, cannot be joined.
        """
        group = self.group
        if group is None or self.joined:
            return value
        shared = torch.tensor([value], device=device)
        with waiting(group, device, "what it found in its first batch"):
            distributed.all_reduce(shared, distributed.ReduceOp.MIN, group=group)
        return int(shared.item())

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, this process is alone."""
        given = self._given
        self._given = False
        try:
            yield
        finally:
            self._given = given


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the module: its parameters are whole inside its forward alone."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported for the question
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)
