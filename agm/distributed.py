"""The processes that train one model together, each on its share of the batch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

__all__ = ["Peers", "check_group", "is_sharded", "summed"]


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
    if process_group is not None:
        distributed.all_reduce(totals, group=process_group)
    return totals


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

    def __deepcopy__(self, memo: Any) -> "Peers":
        return Peers(self._given)  # a group cannot be copied

    @property
    def group(self) -> ProcessGroup | None:
        """None where this process is alone."""
        if self._given is False or not (distributed.is_available() and distributed.is_initialized()):
            return None
        group = distributed.group.WORLD if self._given is None else self._given
        return group if group is not None and distributed.get_world_size(group) > 1 else None

    @property
    def together(self) -> bool:
        return self.group is not None

    @property
    def has_all(self) -> bool:
        """Whether the group has all processes there are, more than one."""
        group = self.group
        return group is not None and distributed.get_world_size(group) == distributed.get_world_size()

    def least(self, value: int, device: torch.device) -> int:
        """The smallest value that a process has. It waits for all of them and for the device."""
        group = self.group
        if group is None:
            return value
        shared = torch.tensor([value], device=device)
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
