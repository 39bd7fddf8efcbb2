"""The functions of one step, given a group."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed

import agm

from .samples import CLASSES, STEPS, Shares, close, exchanged, same_state

Step = Callable[..., tuple[Tensor, Tensor]]


def _rows(parts: list[Tensor], target: Tensor, state: agm.ModulationState, **options: Any) -> Tensor:
    return F.cross_entropy(agm.fused_modulate(parts[0], target, state, **options), target, reduction="sum")


def _cross_entropy(parts: list[Tensor], target: Tensor, state: agm.ModulationState, **options: Any) -> Tensor:
    mean, _ = agm.fused_modulate_cross_entropy(parts[0], target, state, **options)
    return mean * len(target)


def _additive(parts: list[Tensor], target: Tensor, state: agm.ModulationState, **options: Any) -> Tensor:
    present, absent, joint = parts
    if "present" in options:
        options["available"] = options.pop("present")
    logits = agm.fused_modulate_additive(present, absent, target, state, joint_logits=joint, **options)
    return F.cross_entropy(logits, target, reduction="sum")


def _parts(step: Step, shares: Shares, modalities: int) -> list[Tensor]:
    if step is not _additive:
        return [shares.randn(2**modalities - 1, shares.total, CLASSES)]
    own = shares.randn(modalities, shares.total, CLASSES)
    return [own, shares.randn(modalities, CLASSES), shares.randn(shares.total, CLASSES)]


def _mine(parts: list[Tensor], shares: Shares) -> list[Tensor]:
    """Rows of this process; what is common to all samples stays."""
    return [x[..., shares.own, :] if x.shape[-2] == shares.total else x for x in parts]


def _agrees(step: Step, shares: Shares, modalities: int, with_present: bool = False, **options: Any) -> None:
    """Steps of all processes on their shares are steps of one on everything."""
    group = distributed.group.WORLD
    together, alone = agm.ModulationState(modalities), agm.ModulationState(modalities)
    for number in range(STEPS // 2):
        parts = _parts(step, shares, modalities)
        target = torch.randint(CLASSES, (shares.total,), generator=shares.generator)
        full, mine = dict(options), dict(options)
        if with_present:
            present = torch.rand(shares.total, modalities, generator=shares.generator) < 0.6
            present[:, number % modalities] |= ~present.any(1)
            present[shares.total // 2 :, 0] |= number == 3  # the first half lacks the first modality
            present[: shares.total // 2, 0] &= number != 3
            full["present"], mine["present"] = present, present[shares.own]
        leaves = [x.clone().requires_grad_() for x in parts]
        step(leaves, target, alone, alpha=2.0, **full).backward()
        with exchanged() as sizes:
            shared = [x.clone().requires_grad_() for x in _mine(parts, shares)]
            step(shared, target[shares.own], together, alpha=2.0, process_group=group, **mine).backward()
        assert sizes == [(3 if with_present else 2) * modalities + 2]
        for got, leaf in zip(shared, leaves, strict=True):
            if got.shape[-2] == len(target[shares.own]) and leaf.shape[-2] == shares.total:
                close(got.grad, leaf.grad[..., shares.own, :])
            else:  # what is common to all samples has a part of its gradient in every process
                distributed.all_reduce(got.grad)
                close(got.grad, leaf.grad)
        same_state(together, alone)


def functions(rank: int, size: int) -> None:
    for backend in ("reference", "auto")[size // 4 :]:
        for step in (_rows, _cross_entropy, _additive):
            _agrees(step, Shares.even(rank, size), 3, backend=backend)


def functions_with_missing_modalities(rank: int, size: int) -> None:
    for step in (_rows, _cross_entropy, _additive):
        _agrees(step, Shares([3, 2, 4, 1][:size], rank), 3, with_present=True)


def functions_on_drawn_subsets(rank: int, size: int) -> None:
    shares = Shares.even(rank, size)
    sample = agm.sample_subsets(4, 6, generator=torch.Generator().manual_seed(3))
    rows = shares.randn(len(sample.subsets), shares.total, CLASSES)
    target = torch.randint(CLASSES, (shares.total,), generator=shares.generator)
    states = agm.ModulationState(4), agm.ModulationState(4)
    agm.fused_modulate(rows, target, states[0], sample=sample)
    own = {"sample": sample, "process_group": distributed.group.WORLD}
    agm.fused_modulate(rows[:, shares.own], target[shares.own], states[1], **own)
    same_state(states[1], states[0])


def shares_without_samples(rank: int, size: int) -> None:
    """An empty batch, and one of ignored rows alone, still count in the step, with nothing."""
    for step in (_rows, _additive):
        _agrees(step, Shares([0, 5, 1, 2][:size], rank), 2)
    shares = Shares.even(rank, size)
    rows = shares.randn(3, shares.total, CLASSES)
    target = torch.randint(CLASSES, (shares.total,), generator=shares.generator)
    target[: shares.total // size] = -100
    states = agm.ModulationState(2), agm.ModulationState(2)
    agm.fused_modulate(rows, target, states[0])
    agm.fused_modulate(rows[:, shares.own], target[shares.own], states[1], process_group=distributed.group.WORLD)
    same_state(states[1], states[0])
    before = states[1].running_scores.clone()
    nothing = target[shares.own] * 0 - 100
    agm.fused_modulate(rows[:, shares.own], nothing, states[1], process_group=distributed.group.WORLD)
    assert torch.equal(states[1].running_scores, before)
    assert (states[1].step.item(), states[1].skipped.item()) == (1, 1)


def a_step_that_overflows_in_one_process(rank: int, size: int) -> None:
    shares = Shares.even(rank, size)
    rows = shares.randn(3, shares.total, CLASSES)
    target = torch.randint(CLASSES, (shares.total,), generator=shares.generator)
    state = agm.ModulationState(2)
    agm.fused_modulate(rows[:, shares.own], target[shares.own], state, process_group=distributed.group.WORLD)
    kept = state.running_scores.clone()
    rows[0, 0] = torch.inf  # a sample of the first process
    own = rows[:, shares.own].clone().requires_grad_()
    logits = agm.fused_modulate(own, target[shares.own], state, process_group=distributed.group.WORLD)
    logits.sum().backward()
    assert not own.grad[:-1].any()  # kappa = 1 everywhere
    assert torch.equal(state.running_scores, kept)
    assert (state.step.item(), state.skipped.item()) == (1, 1)


def nothing_is_exchanged_without_a_group(rank: int, size: int) -> None:
    shares = Shares.even(rank, size)
    rows = shares.randn(3, shares.total, CLASSES)
    target = torch.randint(CLASSES, (shares.total,), generator=shares.generator)
    with exchanged() as sizes:
        agm.fused_modulate(rows[:, : 2 + rank], target[: 2 + rank], agm.ModulationState(2))
        agm.Modulator(("a", "b"), process_group=False)(rows, target)
    assert sizes == []


def groups_of_some_processes(rank: int, size: int) -> None:
    """The first two processes train together, and the others do not count."""
    pair = distributed.new_group([0, 1])
    shares = Shares.even(rank, size)
    rows = shares.randn(3, shares.total, CLASSES)
    target = torch.randint(CLASSES, (shares.total,), generator=shares.generator)
    if rank > 1:
        with pytest.raises(TypeError, match="`process_group`"):
            agm.Modulator(("a", "b"), process_group=pair)
        return
    modulator = agm.Modulator(("a", "b"), process_group=pair)
    modulator(rows[:, shares.own], target[shares.own])
    expected = agm.ModulationState(2)
    both = slice(0, 2 * shares.total // size)
    agm.fused_modulate(rows[:, both], target[both], expected)
    same_state(modulator.state, expected)


def compiled_function(rank: int, size: int) -> None:
    """The all-reduce is part of the one graph."""
    if size > 2:
        return  # compiling takes the time of many other checks
    shares = Shares.even(rank, size)
    step = torch.compile(agm.fused_modulate, fullgraph=True, backend="eager")
    states = agm.ModulationState(2), agm.ModulationState(2)
    for _ in range(2):
        rows = shares.randn(3, shares.total, CLASSES)
        target = torch.randint(CLASSES, (shares.total,), generator=shares.generator)
        agm.fused_modulate(rows, target, states[0])
        step(rows[:, shares.own], target[shares.own], states[1], process_group=distributed.group.WORLD)
        same_state(states[1], states[0])


CHECKS = (
    functions,
    functions_with_missing_modalities,
    functions_on_drawn_subsets,
    shares_without_samples,
    a_step_that_overflows_in_one_process,
    nothing_is_exchanged_without_a_group,
    groups_of_some_processes,
    compiled_function,
)
