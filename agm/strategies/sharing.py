"""Heads beside a network that processes train together: DistributedDataParallel does not know them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from agm.distributed import summed

__all__ = ["average_gradients", "share"]


@torch.no_grad()
def share(module: nn.Module, group: ProcessGroup) -> None:
    """Every process goes on with the parameters and buffers of the group's first one."""
    for tensor in (*module.parameters(), *module.buffers()):
        distributed.broadcast(tensor, group=group, group_src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], group: ProcessGroup) -> None:
    """The mean over the processes of each gradient that there is, the same in all of them; one all-reduce a dtype."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = summed(torch.cat([gradient.flatten() for gradient in gradients]), group)
        flat /= distributed.get_world_size(group)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
