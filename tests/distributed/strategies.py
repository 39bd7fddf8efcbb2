"""Strategies over DistributedDataParallel: epochs of K processes are those of one with the whole batches."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from agm.strategies import LinearHead, Strategy, build, strategies

from .samples import CLASSES, PATHS, WIDTH, Parted, Shares, Whole, close, exchanged, gradients, weights

EPOCHS = 3


def split(shares: Shares) -> tuple[dict[str, Tensor], Tensor]:
    batch = shares.batch()
    return {name: batch[name] for name in ("audio", "visual")}, batch["target"]


def heads(rank: int) -> dict[str, nn.Module]:
    """Other ones in every process, of which the first one's are taken."""
    torch.manual_seed(rank)
    return {name: LinearHead(WIDTH, CLASSES).double() for name in ("audio", "visual")}


def train(
    name: str,
    rank: int,
    size: int,
    make: Callable[[], nn.Module],
    sizes: list[int],
    encoders: dict[str, str] | None = None,
    own_heads: bool = False,
    **settings: Any,
) -> None:
    """Compares gradients and weights of all steps; validation shares have other numbers of batches."""
    total = sum(sizes)

    def mean_of(processes: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda logits, target: F.cross_entropy(logits, target, reduction="sum") * (processes / total)

    def strategy(network: nn.Module, processes: int, heads_of: int) -> Strategy:
        more = {"heads": heads(heads_of)} if own_heads else {}
        return build(name, network, encoders=encoders, criterion=mean_of(processes), **settings, **more)

    single = strategy(make(), 1, 0)
    shared = strategy(DistributedDataParallel(make()), size, rank)
    optimizers = [torch.optim.SGD(s.parameters(), lr=0.1, momentum=0.9) for s in (shared, single)]
    for one, optimizer in zip((shared, single), optimizers, strict=True):
        one.optimizer = optimizer
    held_out = [split(Shares([4] * size, rank, seed=100 + number)) for number in range(2 * size)]
    mine = held_out[:1] if rank else held_out[1:]  # the first process has more of them
    trained = Shares([6] * size, rank, seed=7)
    whole = split(trained)
    part = ({name: value[trained.own] for name, value in whole[0].items()}, whole[1][trained.own])
    for epoch in range(EPOCHS):
        single.begin_epoch(epoch, train=[whole], validation=held_out)
        shared.begin_epoch(epoch, train=[part], validation=held_out[1:] if not rank else mine if rank == 1 else [])
        for number in range(2):
            shares = Shares(sizes, rank, seed=10 * epoch + number)
            inputs, target = split(shares)
            own = {name: value[shares.own] for name, value in inputs.items()}
            for _ in single.steps(inputs, target):
                expected = gradients(single)
                optimizers[1].step()
            for _ in shared.steps(own, target[shares.own]):
                close(gradients(shared), expected)
                optimizers[0].step()
            for kind, value in single.statistics().items():
                close(shared.statistics()[kind], value)
            close(weights(shared), weights(single))
        single.end_epoch(train=[whole], validation=held_out)
        shared.end_epoch(train=[part], validation=held_out[1:] if not rank else mine if rank == 1 else [])
    for key, value in single.state_dict().items():
        if isinstance(value, Tensor) and not key.startswith("module."):
            close(shared.state_dict()[key], value)


SETTINGS: dict[str, dict[str, Any]] = {
    "joint": {},
    "ogm": {"alpha": 0.8},
    "mslr": {"window": 1, "heads_too": True},
    "mses": {"patience": 1},
    "multi-loss": {"weight": 0.5},
    "hybrid-loss": {"divergence": 0.5},
    "mlb": {},
    "inforeg": {"threshold": 0.0, "summed_scores": True, "window_of": "audio"},
    "pmr": {"share": 1.0},
}


class LateParted(Parted):
    """With logits of each modality that are terms of the network's own."""

    def __init__(self) -> None:
        super().__init__(summed=True)

    def unimodal_logits(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.head.weight.split(WIDTH, 1)
        return {n: F.linear(features[n], w, self.head.bias / 2) for n, w in zip(features, weights, strict=True)}


def even_shares(rank: int, size: int) -> None:
    for name, settings in SETTINGS.items():
        train(name, rank, size, LateParted, [8 // size] * size, **settings)


def uneven_shares(rank: int, size: int) -> None:
    sizes = [8 // size + 1, 8 // size - 1, *[8 // size] * (size - 2)]
    for name in ("ogm", "mlb", "multi-loss", "mslr"):
        train(name, rank, size, LateParted, sizes, **SETTINGS[name])


def heads_of_their_own(rank: int, size: int) -> None:
    for name in ("multi-loss", "mlb", "ogm", "inforeg"):
        train(name, rank, size, Parted, [8 // size] * size, own_heads=True, **SETTINGS[name])


def encoders_by_path(rank: int, size: int) -> None:
    wrapped = {name: f"module.{path}" for name, path in PATHS.items()}
    train("ogm", rank, size, Whole, [8 // size] * size, encoders=PATHS, own_heads=True)
    network = Whole()
    for paths in (PATHS, wrapped):
        strategy = build("ogm", DistributedDataParallel(copy.deepcopy(network)), encoders=paths)
        assert strategy.parts.encoders["audio"] is strategy.network.inner.encoders["audio"]
        build("agm", DistributedDataParallel(copy.deepcopy(network)), encoders=paths)


def one_all_reduce_a_step(rank: int, size: int) -> None:
    strategy = build("ogm", DistributedDataParallel(LateParted()))
    inputs, target = split(Shares([4] * size, rank))
    with exchanged() as sizes:
        list(strategy.steps(inputs, target))
    assert sizes == [3]  # the confidences and how many rows they are of; the gradients go another way


def others_say_why(rank: int, size: int) -> None:
    network = DistributedDataParallel(LateParted())
    for name, kind in strategies.items():
        if not kind.distributed:
            with pytest.raises(
                ValueError, match=r"got a DistributedDataParallel: .*use one of AGM, HybridLoss, InfoReg, Joint"
            ):
                build(name, network)
    for name, settings, message in (("ogm", {"noise": True}, "noise"), ("agm", {"bound": 0.5}, "`bound`")):
        with pytest.raises(ValueError, match=message):
            build(name, network, **settings)
    assert {name for name, kind in strategies.items() if kind.distributed} == {"agm", *SETTINGS}
    distributed.barrier()


CHECKS = (even_shares, uneven_shares, heads_of_their_own, encoders_by_path, one_all_reduce_a_step, others_say_why)
