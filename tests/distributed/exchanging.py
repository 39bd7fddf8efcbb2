"""Batch norm over all processes: torch's own needs a GPU, so a plain one stands in, and tells what it exchanges."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

_LENGTH = 32  # numbers of an exchange: all have as many, so that those of two layers meet and are told apart
_exchanged: list[tuple[int, ...]] = []  # what this process has: layer, way, batch dimensions, numbers


@cache
def group_of_norms() -> Any:
    """All processes, for norms alone; who waits in vain is not waited for long."""
    return distributed.new_group(timeout=timedelta(seconds=20))


def _sum(values: Tensor, about: tuple[int, ...], group: Any) -> Tensor:
    """The sum over the processes, which must all have come to the same exchange."""
    _exchanged.append(about)
    head = values.new_tensor([*about, len(values)])
    own = torch.cat([head, values, values.new_zeros(_LENGTH - len(head) - len(values))])
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    heads = [one[: len(head)].tolist() for one in every]
    assert all(one == heads[0] for one in heads), f"processes exchange statistics of different layers: {heads}"
    return torch.stack(every).sum(0)[len(head) : len(head) + len(values)]


class _Summed(torch.autograd.Function):
    """The sum over the processes, whose gradient is that of all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: int, group: Any) -> Tensor:
        ctx.layer, ctx.group = layer, group
        return _sum(x, (layer, 0), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum(grad, (ctx.layer, 1), ctx.group), None, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    affine = (layer.weight, layer.bias)
    if not layer.training:
        mean, var = layer.running_mean, layer.running_var
        return F.batch_norm(x, mean, var, *affine, mean is None, 0.0, layer.eps)
    own = x.double()
    around = [d for d in range(x.dim()) if d != 1]
    count = own.new_tensor([x.numel() // x.shape[1]])
    told = torch.cat([count, own.sum(around), own.square().sum(around)])
    total = _Summed.apply(told, layer.number, layer.process_group or distributed.group.WORLD)
    count, first, second = total.split([1, *[x.shape[1]] * 2])
    mean = first / count
    variance = second / count - mean.square()
    if layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked += 1
            momentum = 1.0 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
            layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var), momentum)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    normal = (own - mean.view(shape)) / (variance + layer.eps).sqrt().view(shape)
    if layer.affine:
        normal = normal * layer.weight.view(shape) + layer.bias.view(shape)
    return normal.to(x.dtype)


@contextmanager
def stand_in() -> Iterator[None]:
    no_refusal = patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None)  # on a CPU
    with no_refusal, patch.object(nn.SyncBatchNorm, "forward", _forward):
        yield


def synchronised(network: nn.Module, group: Any = None) -> nn.Module:
    """A network whose norms have the statistics of all processes, or of a group of them."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network, group_of_norms() if group is None else group)
    norms = [module for module in network.modules() if type(module) is nn.SyncBatchNorm]
    assert norms
    for number, norm in enumerate(norms):
        norm.number = number
    return network


@contextmanager
def exchanged_alike() -> Iterator[list[tuple[int, ...]]]:
    """What this process exchanges inside: (layer, 0 forward or 1 backward), which must be what all others do."""
    _exchanged.clear()
    yield _exchanged
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, list(_exchanged))
    assert all(one == every[0] for one in every), f"processes have exchanged {every}"
