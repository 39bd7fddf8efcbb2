"""Batch norm over all processes, in one pass and in two; torch's own needs a GPU, so a plain one stands in for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import agm
from agm._one_pass import numeric_check

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
    """One pass of train rows and eval rows is right, where all processes look at a first batch together."""
    sizes = [[1, 4, 2, 2], [0, 4, 1, 2], [2, 2, 2, 2], [3, 1, 2, 2], [2, 0, 0, 3]]
    parts = [row[:size] for row in sizes]
    for passes in ("one", "two", "auto"):
        for each in (even(size, 6), parts, parts[1:]) if passes == "one" else (parts,):
            with stand_in():
                model, single = _networks(passes=passes)
                train(model, single, rank, each)
            close(list(model.module.module.buffers()), list(single.module.buffers()))
            plan = str(own(model).plan())
            assert ("passes='one'" in plan) == (passes == "one"), plan


def synchronised_norms_on_a_gpu(rank: int, size: int) -> None:
    """Torch's own norms, all processes on one device, where one pass is what "auto" comes to."""
    if not torch.cuda.is_available():
        return
    network = nn.SyncBatchNorm.convert_sync_batchnorm(Parted(nn.BatchNorm1d)).cuda()
    model = DistributedDataParallel(agm.AGM(network, alpha=2.0))
    single = agm.AGM(Parted(nn.BatchNorm1d).cuda(), alpha=2.0, passes="two", process_group=False)

    def moved(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        return {name: value.cuda() for name, value in batch.items()}

    train(model, single, rank, even(size), moved)
    close(list(model.module.module.buffers()), list(single.module.buffers()))
    assert "weights are read once and kernels launched once" in str(own(model).plan())


def synchronised_norms_apart(rank: int, size: int) -> None:
    """A process that looks at its first batch by itself takes two passes."""
    for group in (False, distributed.new_group([0])):
        if group is not False and rank:
            continue
        network = nn.SyncBatchNorm.convert_sync_batchnorm(Parted(nn.BatchNorm1d))
        model = agm.AGM(network, alpha=2.0, passes="one", process_group=group)
        shares = Shares.even(rank, size)
        with pytest.raises(ValueError, match="exchanges statistics with other processes"):
            loss(model, shares.mine(shares.batch()), shares.total)


def other_numbers_in_one_process(rank: int, size: int) -> None:
    """What one process finds against one pass, all heed."""

    differs: Callable[..., str | None] = numeric_check._split_differs

    def strange(*given: Any) -> str | None:
        return differs(*given) or ("it is strange" if rank == 0 else None)

    with stand_in(), patch.object(numeric_check, "_split_differs", strange):
        model, _ = _networks(passes="one")
        shares = Shares.even(rank, size)
        reason = "another process has found other numbers" if rank else "it is strange"
        with pytest.raises(ValueError, match=reason):
            loss(model, shares.mine(shares.batch()), shares.total)


CHECKS = (synchronised_norms, synchronised_norms_on_a_gpu, synchronised_norms_apart, other_numbers_in_one_process)
