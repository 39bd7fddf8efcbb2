"""Batch norm over all processes, in one pass and in two: what each exchanges, and the numbers of a single process."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import agm
import agm._one_pass.choice

from .exchanging import exchanged_alike, stand_in, synchronised
from .samples import PATHS, Parted, Shares, Whole, close, gradients, loss, own
from .training import even, train


class Leaving(nn.Module):
    """Hands on what it is given; `now` by a function of which nobody knows that it treats rows apart."""

    now = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.renorm(x, 2.0, 0, 1e6) if self.now else x


def _two_norms(width: int) -> nn.Module:
    """Of which the second has cumulative statistics."""
    norms = (nn.BatchNorm1d(width), nn.BatchNorm1d(width, momentum=None))
    return nn.Sequential(norms[0], Leaving(), nn.Linear(width, width), norms[1])


def _parted() -> nn.Module:
    return Parted(_two_norms)


def _whole() -> nn.Module:
    network = Whole()
    network.inner = Parted(_two_norms)
    return network


VARIANTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "encoders and fuse": (_parted, {}),
    "a sum": (lambda: Parted(_two_norms, summed=True), {}),
    "shared": (_parted, {"masked": "shared"}),
    "a shared sum": (lambda: Parted(_two_norms, summed=True), {"masked": "shared"}),
    "paths": (_whole, {"modalities": ("audio", "visual"), "encoders": PATHS}),
}
_FORWARD = [(layer, 0) for layer in range(4)]
_STEP = [*_FORWARD, *((layer, 1) for layer, _ in reversed(_FORWARD))]  # of each norm once each way


def _networks(name: str, **options: Any) -> tuple[nn.Module, agm.AGM]:
    """The model of all processes, and that of one."""
    make, own_options = VARIANTS[name]
    single = agm.AGM(make(), alpha=2.0, passes="two", process_group=False, **own_options)
    model = agm.AGM(synchronised(make()), alpha=2.0, **options, **own_options)
    with stand_in():
        return DistributedDataParallel(model), single


def _parts(size: int) -> list[list[int]]:
    """Shares that are not alike: of one sample, and empty ones."""
    return [row[:size] for row in ([1, 4, 2, 2], [0, 4, 1, 2], [2, 2, 2, 2], [3, 1, 2, 2], [2, 0, 0, 3])]


def _train(model: nn.Module, single: agm.AGM, rank: int, sizes: Sequence[Sequence[int]], **given: Any) -> None:
    with stand_in(), exchanged_alike() as exchanged:
        train(model, single, rank, sizes, **given)
        assert exchanged == _STEP * len(sizes)
    close(list(model.module.module.buffers()), list(single.module.buffers()))


def synchronised_norms(rank: int, size: int) -> None:
    """In one pass, with shares that are even or not; a process with an empty share takes two."""
    for name in VARIANTS:
        for sizes in (_parts(size), [*_parts(size)[1:], *even(size, 2)]):
            model, single = _networks(name, passes="one")
            _train(model, single, rank, sizes)
        assert "a pass of their own" not in str(own(model).plan())


def synchronised_norms_in_two_passes(rank: int, size: int) -> None:
    for name in ("encoders and fuse", "paths"):
        model, single = _networks(name, passes="two")
        _train(model, single, rank, _parts(size))


def different_passes(rank: int, size: int) -> None:
    """Each process chooses by itself."""
    for name in VARIANTS:
        model, single = _networks(name, passes="two" if rank % 2 else "one")
        _train(model, single, rank, _parts(size))


def one_that_leaves_the_one_pass(rank: int, size: int) -> None:
    """In the middle of an encoder, in a first batch or in a later one: it does not exchange again."""
    for name in VARIANTS:
        for first in (True, False):
            _leave(rank, size, name, first)


def _leave(rank: int, size: int, name: str, first: bool) -> None:
    model, single = _networks(name)
    leaving = [module for module in model.modules() if isinstance(module, Leaving)]

    def given(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        leaving[0].now = rank == 1 and number == (0 if first else 1)
        leaving[1].now = rank == 0 and number == 2
        return batch

    _train(model, single, rank, [[3, 2, 2, 3][:size]] * 4, given=given)
    assert bool(own(model)._passes.record.one_pass.refused or own(model)._passes.record.one_pass.missed) == (rank < 2)


class Dropping(Parted):
    """Leaves one modality out of the joint pass in some steps, the same everywhere."""

    drops = False

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        if self.training and self.drops:
            features = {**features, "audio": torch.zeros_like(features["audio"])}
        return super().fuse(features)


def features_that_are_left_out(rank: int, size: int) -> None:
    """There a norm exchanges nothing in the backward, in a process with one pass or with an empty share."""
    single = agm.AGM(Dropping(_two_norms), alpha=2.0, passes="two", process_group=False)
    model = agm.AGM(synchronised(Dropping(_two_norms)), alpha=2.0)
    networks = [one.module for one in (model, single)]

    def given(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        for network in networks:
            network.drops = number % 2 == 1
        return batch

    with (
        stand_in(),
        exchanged_alike() as exchanged,
    ):
        train(DistributedDataParallel(model), single, rank, _parts(size)[:4], given)
        left = [*_FORWARD, (3, 1), (2, 1)]
        assert exchanged == [*_STEP, *left] * 2


def kinds_of_synchronised_norms(rank: int, size: int) -> None:
    """One pass as two, with norms of other settings: numbers, statistics and exchanges; frozen norms have none."""
    pair = [distributed.new_group([first, first + 1]) for first in range(0, size, 2)][rank // 2]
    kinds: dict[str, tuple[Callable[[int], nn.Module], Any]] = {
        "no parameters": (lambda width: nn.BatchNorm1d(width, affine=False), None),
        "momentum 1": (lambda width: nn.BatchNorm1d(width, momentum=1.0), None),
        "of pairs": (nn.BatchNorm1d, pair),
        "frozen": (lambda width: nn.BatchNorm1d(width).eval(), None),
        "of images": (
            lambda width: nn.Sequential(nn.Unflatten(1, (2, width // 2, 1)), nn.BatchNorm2d(2), nn.Flatten()),
            None,
        ),
    }
    for name, (norm, group) in kinds.items():
        for autocast in (False, True) if name in ("momentum 1", "of images") else (False,):
            found = {passes: _steps(rank, size, norm, group, passes, autocast) for passes in ("one", "two")}
            (one, counted), (two, expected) = found["one"], found["two"]
            assert counted == expected, name
            assert (counted == []) == (name == "frozen")
            torch.testing.assert_close(one, two, **({"rtol": 0.1, "atol": 0.02} if autocast else {}), equal_nan=True)


def _steps(
    rank: int, size: int, norm: Callable[[int], nn.Module], group: Any, passes: Any, autocast: bool
) -> tuple[list[Any], list[tuple[int, ...]]]:
    """What two steps leave behind, and what they exchange."""
    model = agm.AGM(synchronised(Parted(norm), group), alpha=2.0, passes=passes)
    found: list[Any] = []
    with stand_in(), exchanged_alike() as exchanged:
        for number in range(2):
            shares = Shares.even(rank, size, seed=number)
            given = shares.mine(shares.batch())
            with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
                logits = loss(model, given, shares.total)
            logits.backward()
            found += [logits.detach().double(), gradients(model), [buffer.clone() for buffer in model.buffers()]]
        assert ("a pass of their own" in str(model.plan())) == (passes == "two")
        return found, list(exchanged)


def synchronised_norms_of_single_models(rank: int, size: int) -> None:
    """Each process has scores of its own, but no statistics: as many exchanges, also in a first batch that is empty."""
    for passes in ("one", "two"):
        for masked in ("exact", "shared"):
            model = agm.AGM(synchronised(_parted()), alpha=2.0, masked=masked, passes=passes, process_group=False)
            with stand_in(), exchanged_alike() as exchanged:
                for number, parts in enumerate(_parts(size)[1:]):
                    shares = Shares(parts, rank, seed=number)
                    loss(model, shares.mine(shares.batch()), shares.total).backward()
                assert exchanged == _STEP * 4


def verified_synchronised_norms(rank: int, size: int) -> None:
    """All processes verify at the same time, and one pass exchanges what two do."""
    for passes in ("one", "two"):
        model = agm.AGM(synchronised(_parted()), alpha=2.0, passes=passes)
        shares = Shares.even(rank, size)
        given = shares.mine(shares.batch())
        target = given.pop("target")
        with stand_in(), exchanged_alike() as exchanged:
            assert agm.verify(model, given, target).ok
            assert len(exchanged) > 0


def synchronised_norms_on_a_gpu(rank: int, size: int) -> None:
    """Torch's own norms, all processes on one device."""
    if not torch.cuda.is_available():
        return
    for passes in ("one", "two", "auto"):
        network = nn.SyncBatchNorm.convert_sync_batchnorm(_parted()).cuda()
        model = DistributedDataParallel(agm.AGM(network, alpha=2.0, passes=passes))
        single = agm.AGM(_parted().cuda(), alpha=2.0, passes="two", process_group=False)

        def moved(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
            return {name: value.cuda() for name, value in batch.items()}

        for sizes in (even(size), _parts(size)):
            train(model, single, rank, sizes, moved)
        close(list(model.module.module.buffers()), list(single.module.buffers()))
        assert ("a pass of their own" in str(own(model).plan())) == (passes == "two")


CHECKS = (
    synchronised_norms,
    synchronised_norms_in_two_passes,
    different_passes,
    one_that_leaves_the_one_pass,
    features_that_are_left_out,
    kinds_of_synchronised_norms,
    synchronised_norms_of_single_models,
    verified_synchronised_norms,
    synchronised_norms_on_a_gpu,
)
