"""The model in DistributedDataParallel: steps of K processes are steps of one, in gradients and in weights."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import agm
from agm.joining import joinable

from .samples import (
    MODALITIES,
    PATHS,
    STEPS,
    Parted,
    Shares,
    Whole,
    close,
    exchanged,
    gradients,
    loss,
    own,
    same_state,
    weights,
)


def alone(make: Callable[[], nn.Module], **options: Any) -> agm.AGM:
    return agm.AGM(make(), MODALITIES, alpha=2.0, process_group=False, **options)


def outside(make: Callable[[], nn.Module], **options: Any) -> nn.Module:
    return DistributedDataParallel(agm.AGM(make(), MODALITIES, alpha=2.0, **options))


def inside(make: Callable[[], nn.Module], **options: Any) -> nn.Module:
    return agm.AGM(DistributedDataParallel(make()), MODALITIES, alpha=2.0, **options)


def train(
    model: nn.Module,
    single: agm.AGM,
    rank: int,
    sizes: Sequence[Sequence[int]],
    given: Callable[[dict[str, Tensor], int], dict[str, Tensor]] = lambda batch, number: batch,
) -> None:
    """Compares training on shares of these sizes, a list of them a step, with that of one process."""
    processes = distributed.get_world_size()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, single)]
    for number, parts in enumerate(sizes):
        shares = Shares(parts, rank, seed=number)
        batch = given(shares.batch(), number)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model, shares.mine(batch), shares.total, processes).backward()
        loss(single, batch, shares.total).backward()
        close(gradients(model), gradients(single))
        same_state(own(model).modulator.state, single.modulator.state)
        for optimizer in optimizers:
            optimizer.step()
        close(weights(model), weights(single))


def even(size: int, steps: int = STEPS) -> list[list[int]]:
    return [[8 // size] * size] * steps


VARIANTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "encoders and fuse": (Parted, {}),
    "a sum": (lambda: Parted(summed=True), {}),
    "shared": (Parted, {"masked": "shared"}),
    "one piece": (Whole, {}),
    "paths": (Whole, {"encoders": PATHS}),
    "a loss": (Whole, {"head": "inner.head.2", "loss": "cross_entropy"}),
    "chunks": (Parted, {"max_rows": 3, "checkpoint": True}),
}


def data_parallel(rank: int, size: int) -> None:
    for name, (make, options) in VARIANTS.items():
        try:
            steps = 3 if options else STEPS
            train(outside(make, **options), alone(make, **options), rank, even(size, steps))
        except Exception as error:
            raise AssertionError(name) from error


def data_parallel_inside(rank: int, size: int) -> None:
    train(inside(Whole), alone(Whole), rank, even(size, 3))
    paths = {name: f"module.{path}" for name, path in PATHS.items()}
    train(inside(Whole, encoders=paths), alone(Whole, encoders=PATHS), rank, even(size, 3))


def one_process_that_loads(rank: int, size: int) -> None:
    """The state of the group's first process is everybody's, as its weights are in DistributedDataParallel."""
    saved = agm.Modulator(MODALITIES).state_dict()
    saved["state.running_scores"] += torch.tensor([0.3, 1.1])
    saved["state.step"] += 5
    saved["state.skipped"] += 2
    model, single = outside(Whole), alone(Whole)
    single.modulator.load_state_dict(saved)
    if rank == 0:
        own(model).modulator.load_state_dict(saved)
    train(model, single, rank, even(size, 3))
    assert own(model).modulator.state.step == 8
    assert own(model).modulator.state.skipped == 2


def one_exchange_a_step(rank: int, size: int) -> None:
    """Of 2M + 2 numbers, once the first batch has been looked at; nothing in eval mode."""
    for make, options in VARIANTS.values():
        model = outside(make, **options)
        shares = Shares.even(rank, size)
        loss(model, shares.mine(shares.batch()), shares.total).backward()
        for _ in range(2):
            given = shares.mine(shares.batch())
            with exchanged() as numbers:
                loss(model, given, shares.total).backward()
            assert numbers == [6], (options, numbers)
        with exchanged() as numbers:
            model.eval()(**given)
        assert numbers == []


def uneven_batches(rank: int, size: int) -> None:
    """A first batch of one sample in a process, a last one that is smaller in some, and one that is empty in one."""
    sizes = [[1, 4, 3, 2], [2, 2, 2, 2], [3, 1, 2, 2], [0, 3, 1, 2], [2, 2, 0, 1]]
    parts = [row[:size] for row in sizes]
    for make, options in ((Parted, {}), (Whole, {"encoders": PATHS}), (Whole, {})):
        train(outside(make, **options), alone(make, **options), rank, parts)
    train(outside(Parted), alone(Parted), rank, [[0, 2, 3, 1][:size], *parts])  # an empty batch before all others


def fewer_batches(rank: int, size: int) -> None:
    """In a Join, a process without a batch adds nothing to the others' steps, and its state follows them."""
    sizes = [[2] * size, [2, 3, *[2] * (size - 2)], [3, *[0] * (size - 1)], [4, *[0] * (size - 1)]]
    for make, options in ((lambda: Parted(nn.BatchNorm1d), {"masked": "shared"}), (Whole, {})):
        for present in (False, True):
            model, single = outside(make, **options), alone(make, **options)
            has = [torch.rand(sum(parts), 2, generator=torch.Generator().manual_seed(7)) < 0.7 for parts in sizes]
            with Join([joinable(model)]):
                for number, parts in enumerate(sizes):
                    if parts[rank]:
                        shares = Shares(parts, rank, seed=number)
                        given = shares.batch() | ({"present": has[number]} if present else {})
                        model.zero_grad()
                        loss(model, shares.mine(given), shares.total, size).backward()
            for number, parts in enumerate(sizes):
                shares = Shares(parts, 0, seed=number)
                given = shares.batch() | ({"present": has[number]} if present else {})
                single.zero_grad()
                loss(single, given, shares.total).backward()
            norms = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
            if not norms:  # of the processes' own batches
                same_state(own(model).modulator.state, single.modulator.state)
            mine = own(model).modulator.state.running_scores
            everybody = [torch.zeros_like(mine) for _ in range(size)]
            distributed.all_gather(everybody, mine)
            assert all(torch.equal(mine, theirs) for theirs in everybody)
            assert own(model).modulator.state.step == len(sizes)
            model.zero_grad()
            loss(model, Shares.even(rank, size).mine(Shares.even(rank, size).batch()), 8).backward()


def ignored_targets(rank: int, size: int) -> None:
    def ignoring(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        batch["target"][: 8 // size if number % 2 else 1] = -100  # in the first process some, then all
        return batch

    train(outside(Parted), alone(Parted), rank, even(size, 4), ignoring)


def missing_modalities(rank: int, size: int) -> None:
    """In turn no sample of the first process, none of the second, and none at all has a modality."""

    def lacking(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        present = torch.ones(8, 2, dtype=torch.bool)
        present[1, 1] = False
        share = 8 // size
        present[number % 3 * share : (number % 3 + 1) * share, 0] = False
        if number == 4:
            present[:, 0] = False
        batch["audio"] = torch.where(present[:, :1], batch["audio"], torch.nan)
        return {**batch, "present": present}

    train(outside(Parted), alone(Parted), rank, even(size, 6), lacking)


def drawn_subsets(rank: int, size: int) -> None:
    """Every process draws the same."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(13, 6), nn.Tanh(), nn.Linear(6, 3)).double()

        def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
            return self.layers(torch.cat([audio, visual, text], 1))

    def with_text(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        return {**batch, "text": batch["audio"].cos()}

    names = (*MODALITIES, "text")
    model = DistributedDataParallel(agm.AGM(Three(), names, subsets=4, seed=5))
    train(model, agm.AGM(Three(), names, subsets=4, seed=5, process_group=False), rank, even(size, 4), with_text)


def accumulation(rank: int, size: int) -> None:
    """Under no_sync each forward is a step of the scores of all processes; gradients are averaged in the last."""
    model, single = outside(Parted), alone(Parted)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, single)]
    shares = Shares.even(rank, size)
    for _ in range(STEPS // 2):
        first, second = shares.batch(), shares.batch()
        with model.no_sync():
            loss(model, shares.mine(first), shares.total, size).backward()
        loss(model, shares.mine(second), shares.total, size).backward()
        for batch in (first, second):
            loss(single, batch, shares.total).backward()
        close(gradients(model), gradients(single))
        same_state(own(model).modulator.state, single.modulator.state)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    close(weights(model), weights(single))
    assert single.modulator.state.step.item() == STEPS // 2 * 2


def outside_the_window(rank: int, size: int) -> None:
    model = outside(Parted, start=1)
    shares = Shares.even(rank, size)
    with exchanged() as numbers:
        loss(model, shares.mine(shares.batch()), shares.total).backward()
    assert numbers == []


def copies(rank: int, size: int) -> None:
    """A copied model, and one that is resumed, train on as the original does."""
    model = agm.AGM(Parted(), alpha=2.0, process_group=distributed.group.WORLD)
    shares = Shares.even(rank, size)
    loss(model, shares.mine(shares.batch()), shares.total).backward()
    copied = copy.deepcopy(model)
    loaded = agm.AGM(Parted(), alpha=2.0)
    loaded.load_state_dict(model.state_dict())
    given = shares.mine(shares.batch())
    for other in (model, copied, loaded):
        other.zero_grad()
        loss(other, given, shares.total).backward()
    for other in (copied, loaded):
        close(gradients(other), gradients(model))
        same_state(other.modulator.state, model.modulator.state)


def verified_apart(rank: int, size: int) -> None:
    """`agm.verify` looks at the batch of one process, as does a plan; not all need call it."""
    model = agm.AGM(Parted(), alpha=2.0)
    shares = Shares([3, 4, 2, 5][:size], rank)
    given = shares.mine(shares.batch())
    target = given.pop("target")
    if rank == 0:
        with exchanged() as numbers:
            assert agm.verify(model, given, target).ok
        assert numbers == []
    train(DistributedDataParallel(model), alone(Parted), rank, even(size, 2))
    assert "training" in str(model.plan())


def learnt_absents_inside(rank: int, size: int) -> None:
    absent = {"audio": nn.Parameter(torch.zeros(4, dtype=torch.float64))}
    train(outside(Parted, absent=absent), alone(Parted, absent=copy.deepcopy(absent)), rank, even(size, 3))
    with pytest.raises(ValueError, match=r"DistributedDataParallel\(agm.AGM\(network\)\)"):
        inside(Whole, absent=absent)


def rows_that_meet_in_one_process(rank: int, size: int) -> None:
    """It takes passes of one subset from then on, and asks the others what they ask each other, at the same time."""

    class Whole0(Whole):
        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            logits: Tensor = super().forward(audio, visual)
            return logits - logits.mean(0) if rank == 0 else logits

    class Parted0(Parted):
        def fuse(self, features: Any) -> Tensor:
            logits: Tensor = super().fuse(features)
            return logits - logits.mean(0) if rank == 0 else logits

    made: tuple[tuple[type[nn.Module], dict[str, Any]], ...] = (
        (Parted0, {}),
        (Whole0, {}),
        (Whole0, {"encoders": PATHS}),
        (Whole0, {"encoders": PATHS, "masked": "shared"}),
    )
    for make, options in made:
        for first in ([1] * size, [2, 0, *[2] * (size - 2)], [0, *[2] * (size - 1)]):
            model = outside(make, **options)
            for number, parts in enumerate([first, [1] * size, [2] * size, first, [3] * size]):
                shares = Shares(parts, rank, seed=number)
                model.zero_grad()
                loss(model, shares.mine(shares.batch()), shares.total, size).backward()
            assert bool(own(model)._passes.record.rows_meet) == (rank == 0)
            mine = torch.cat([gradient.flatten() for gradient in gradients(model)])
            everybody = [torch.zeros_like(mine) for _ in range(size)]
            distributed.all_gather(everybody, mine)
            assert all(torch.equal(mine, theirs) for theirs in everybody)


CHECKS = (
    data_parallel,
    data_parallel_inside,
    one_process_that_loads,
    one_exchange_a_step,
    uneven_batches,
    fewer_batches,
    ignored_targets,
    missing_modalities,
    drawn_subsets,
    accumulation,
    outside_the_window,
    copies,
    verified_apart,
    learnt_absents_inside,
    rows_that_meet_in_one_process,
)
