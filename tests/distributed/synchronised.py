"""Batch norm over all processes, in one pass and in two; torch's own needs a GPU, so a plain one stands in for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import agm

from .samples import Parted, Shares, close, loss, own
from .training import even, train


class _Summed(torch.autograd.Function):
    """The sum over the processes, whose gradient is that of all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total


def _forward(layer: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    if not layer.training:
        statistics = (layer.running_mean, layer.running_var)
        return F.batch_norm(x, *statistics, layer.weight, layer.bias, False, 0.0, layer.eps)
    count = x.new_tensor([len(x)])
    count, first, second = _Summed.apply(torch.cat([count, x.sum(0), x.square().sum(0)])).split([1, *[x.shape[1]] * 2])
    mean = first / count
    variance = second / count - mean.square()
    with torch.no_grad():
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * count / (count - 1), layer.momentum)
        layer.num_batches_tracked += 1
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


@contextmanager
def stand_in() -> Iterator[None]:
    no_refusal = patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None)  # on a CPU
    with no_refusal, patch.object(nn.SyncBatchNorm, "forward", _forward):
        yield


def _networks(**options: Any) -> tuple[nn.Module, agm.AGM]:
    """The model of all processes, and that of one."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(Parted(nn.BatchNorm1d))
    assert any(type(module) is nn.SyncBatchNorm for module in network.modules())
    single = agm.AGM(Parted(nn.BatchNorm1d), alpha=2.0, passes="two", process_group=False)
    return DistributedDataParallel(agm.AGM(network, alpha=2.0, **options)), single


def synchronised_norms(rank: int, size: int) -> None:
    """Two passes: in one a process that cannot tell its rows apart would leave the others waiting."""
    sizes = [[1, 4, 2, 2], [0, 4, 1, 2], [2, 2, 2, 2], [3, 1, 2, 2], [2, 0, 0, 3]]
    parts = [row[:size] for row in sizes]
    for each in (even(size, 6), parts, parts[1:]):
        with stand_in():
            model, single = _networks()
            train(model, single, rank, each)
        close(list(model.module.module.buffers()), list(single.module.buffers()))
        assert "exchanges statistics with other processes" in str(own(model).plan())


def synchronised_norms_on_a_gpu(rank: int, size: int) -> None:
    """Torch's own norms, all processes on one device."""
    if not torch.cuda.is_available():
        return
    network = nn.SyncBatchNorm.convert_sync_batchnorm(Parted(nn.BatchNorm1d)).cuda()
    model = DistributedDataParallel(agm.AGM(network, alpha=2.0))
    single = agm.AGM(Parted(nn.BatchNorm1d).cuda(), alpha=2.0, passes="two", process_group=False)

    def moved(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        return {name: value.cuda() for name, value in batch.items()}

    train(model, single, rank, even(size), moved)
    close(list(model.module.module.buffers()), list(single.module.buffers()))


def synchronised_norms_apart(rank: int, size: int) -> None:
    """One pass cannot be asked for."""
    for group in (None, False, distributed.new_group([0])):
        if group not in (None, False) and rank:
            continue
        network = nn.SyncBatchNorm.convert_sync_batchnorm(Parted(nn.BatchNorm1d))
        model = agm.AGM(network, alpha=2.0, passes="one", process_group=group)
        shares = Shares.even(rank, size)
        with pytest.raises(ValueError, match="exchanges statistics with other processes"):
            loss(model, shares.mine(shares.batch()), shares.total)


CHECKS = (synchronised_norms, synchronised_norms_on_a_gpu, synchronised_norms_apart)
