"""FSDP2: a model whose parameters are sharded trains as one process does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import agm

from .samples import MODALITIES, PATHS, Parted, Shares, Whole, loss
from .training import VARIANTS, alone, even, train


def _model(make: Callable[[], nn.Module], **options: Any) -> nn.Module:
    return fully_shard(agm.AGM(make(), MODALITIES, alpha=2.0, **options))


def _with_encoders(**options: Any) -> nn.Module:
    network = Parted()
    for encoder in network.encoders.values():
        fully_shard(encoder)
    return fully_shard(agm.AGM(network, alpha=2.0, **options))


def _with_all_parts(**options: Any) -> nn.Module:
    network = Parted()
    for part in (*network.encoders.values(), network.head):
        fully_shard(part)
    return fully_shard(agm.AGM(network, alpha=2.0, **options))


def _with_paths() -> nn.Module:
    network = Whole()
    for encoder in network.inner.encoders.values():
        for layer in encoder:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(encoder)
    return fully_shard(agm.AGM(network, MODALITIES, encoders=PATHS, alpha=2.0))


def sharded_models(rank: int, size: int) -> None:
    for make, options in list(VARIANTS.values())[: 8 // size]:
        train(_model(make, **options), alone(make, **options), rank, even(size, 2))


def sharded_parts(rank: int, size: int) -> None:
    """Also with a first batch of one sample in a process, and with an empty one: as many gathers everywhere."""
    parts = [row[:size] for row in ([1, 4, 3, 2], [2, 2, 2, 2], [0, 3, 1, 2], [2, 2, 0, 1])]
    shared = {"masked": "shared"}
    for sizes in (parts, parts[2:]):
        train(_with_all_parts(), alone(Parted), rank, sizes)
        if size > 2:
            continue  # the rest is a matter of which parts, not of how many processes
        train(_with_encoders(), alone(Parted), rank, sizes)
        train(_with_encoders(**shared), alone(Parted, **shared), rank, sizes)
        train(_with_paths(), alone(Whole, encoders=PATHS), rank, sizes)


def sharded_networks(rank: int, size: int) -> None:
    """A network of one piece may be sharded by itself; one with `fuse` is refused."""
    train(agm.AGM(fully_shard(Whole()), MODALITIES, alpha=2.0), alone(Whole), rank, even(size, 2))
    with pytest.raises(ValueError, match=r"'inner\.head\.2' is in a part that is sharded"):
        agm.AGM(fully_shard(Whole()), MODALITIES, head="inner.head.2", loss="cross_entropy")
    shares = Shares.even(rank, size)
    model = agm.AGM(fully_shard(Parted()), alpha=2.0)
    with pytest.raises(ValueError, match=r"fully_shard\(agm.AGM\(network\)\)"):
        loss(model, shares.mine(shares.batch()), shares.total)
    assert not torch.any(model.modulator.state.counts)


CHECKS = (sharded_models, sharded_parts, sharded_networks)
