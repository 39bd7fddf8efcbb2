"""Scores of other tasks than one class a sample, against their formulas in Python numbers, position by position."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import agm

from .scores_oracle import (
    DOUBLE,
    FLOOR,
    TASKS,
    WEIGHTS,
    B,
    Oracle,
    assert_state,
    generator,
    neutral,
    numbers,
    own_error,
    presence,
    scaled,
)


@pytest.mark.parametrize("inner", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_steps_against_the_formulas(name: str, lacking: bool, inner: tuple[int, ...]) -> None:
    task, state = TASKS[name], agm.ModulationState(2)
    oracle = Oracle(task, alpha=0.7)
    for seed in range(3):
        present = presence(seed) if lacking else torch.ones(B, 2, dtype=torch.bool)
        masked = neutral(numbers(3, B, *inner, task.outputs, seed=seed), present).requires_grad_()
        target = task.target((B, *inner), seed)
        expected = oracle.step(masked.detach(), target, present)
        logits = agm.fused_modulate(
            masked, target, state, alpha=0.7, floor=FLOOR, score=name, present=present if lacking else None
        )
        assert torch.equal(logits, masked[-1])
        assert_state(state, expected)
        upstream = numbers(*logits.shape, seed=seed + 10)
        (gradient,) = torch.autograd.grad(logits, masked, upstream)
        kappa = torch.tensor(expected["coefficients"], dtype=DOUBLE)
        torch.testing.assert_close(gradient, scaled(kappa, present, upstream), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inner", [(), (3,)], ids=str)
@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("given_joint", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_additive_fusions(name: str, given_joint: bool, lacking: bool, inner: tuple[int, ...]) -> None:
    """The same as on the rows of all subsets: state, logits, and the gradient of each part."""
    task = TASKS[name]
    parts = numbers(3, B, *inner, task.outputs).requires_grad_()
    absent = numbers(3, *inner, task.outputs, seed=1).requires_grad_()
    bias = numbers(task.outputs, seed=2).requires_grad_()
    joint = numbers(B, *inner, task.outputs, seed=3).requires_grad_()
    target = task.target((B, *inner), 4)
    available = torch.rand(B, 3, generator=generator(5)) < 0.6 if lacking else torch.ones(B, 3, dtype=torch.bool)
    here = torch.where(available.T.reshape(3, B, *[1] * (parts.dim() - 2)), parts, absent.unsqueeze(1))
    sums = [sum(here[m] if subset >> m & 1 else absent[m] for m in range(3)) + bias for subset in range(1, 8)]
    rows = torch.stack([*sums[:-1], joint if given_joint else sums[-1]])
    options: dict[str, Any] = {"alpha": 0.5, "floor": FLOOR, "score": name}
    states = [agm.ModulationState(3) for _ in range(2)]
    expected = agm.fused_modulate(rows, target, states[0], present=available if lacking else None, **options)
    last: dict[str, Any] = {"joint_logits": joint} if given_joint else {"bias": bias}
    forms = (parts, absent.unsqueeze(1)) if lacking else (list(parts), list(absent))
    logits = agm.fused_modulate_additive(
        *forms, target, states[1], available=available if lacking else None, **last, **options
    )
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(states[1].values, states[0].values)
    assert torch.equal(states[1].counts, states[0].counts)
    leaves, upstream = [parts, absent, *last.values()], numbers(*logits.shape, seed=6)
    for got, wanted in zip(
        torch.autograd.grad(logits, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("loss", [False, True])
def test_tokens_are_samples_to_the_kernels(loss: bool, backend: str) -> None:
    masked, target = numbers(3, 4, 2, 3, 5).float(), torch.randint(5, (4, 2, 3), generator=generator())
    target[1, 0, 2] = -100

    def step(rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, agm.ModulationState]:
        rows, state = rows.clone().requires_grad_(), agm.ModulationState(2)
        if loss:
            mean, logits = agm.fused_modulate_cross_entropy(rows, index, state, alpha=2.0, backend=backend)
        else:
            logits = agm.fused_modulate(rows, index, state, alpha=2.0, backend=backend)
            mean = F.cross_entropy(logits.flatten(0, -2), index.flatten())
        (gradient,) = torch.autograd.grad(mean, rows)
        return mean, logits, gradient, state

    mean, logits, gradient, state = step(masked, target)
    flat_mean, flat_logits, flat_gradient, flat_state = step(masked.flatten(1, -2), target.flatten())
    assert torch.equal(mean, flat_mean)
    assert torch.equal(logits, flat_logits.view(4, 2, 3, 5))
    assert torch.equal(gradient, flat_gradient.view(masked.shape))
    assert torch.equal(state.values, flat_state.values)
    assert torch.equal(state.counts, flat_state.counts)
    assert state.samples == 23


def test_what_a_kernel_computes_of_tokens_is_permuted_with_them() -> None:
    masked = numbers(3, 4, 5, 6).transpose(2, 3).requires_grad_()  # (3, 4, 6, 5), not contiguous
    target = torch.randint(5, (4, 6), generator=generator())
    states = [agm.ModulationState(2) for _ in range(2)]
    grads = []
    for rows, state in zip((masked, masked.detach().contiguous().requires_grad_()), states, strict=True):
        logits = agm.fused_modulate(rows, target, state)
        grads.append(torch.autograd.grad(logits.square().sum(), rows)[0])
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(states[0].values, states[1].values)


def test_soft_labels_of_one_class_are_class_indices() -> None:
    masked, target = numbers(3, B, 4), torch.randint(4, (B,), generator=generator())
    states = [agm.ModulationState(2) for _ in range(2)]
    agm.fused_modulate(masked, target, states[0], floor=FLOOR)
    agm.fused_modulate(masked, F.one_hot(target, 4).double(), states[1], floor=FLOOR, score="soft_cross_entropy")
    torch.testing.assert_close(states[1].values, states[0].values, rtol=1e-12, atol=0)
    assert torch.equal(states[1].counts, states[0].counts)


def test_mixup() -> None:
    """Both halves of a mixed sample are in its score, as they are in the loss."""
    masked, first = numbers(3, B, 4).requires_grad_(), torch.randint(4, (B,), generator=generator())
    second, share = first.flip(0), 0.3
    mixed = share * F.one_hot(first, 4).double() + (1 - share) * F.one_hot(second, 4).double()
    state, parts = agm.ModulationState(2), [agm.ModulationState(2) for _ in range(2)]
    logits = agm.fused_modulate(masked, mixed, state, alpha=0.5, score="soft_cross_entropy")
    for target, part in zip((first, second), parts, strict=True):
        agm.fused_modulate(masked, target, part)
    torch.testing.assert_close(state.scores, share * parts[0].scores + (1 - share) * parts[1].scores)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, mixed), masked)
    joint = masked[-1].detach().requires_grad_()
    (upstream,) = torch.autograd.grad(F.cross_entropy(joint, mixed), joint)
    torch.testing.assert_close(gradient, scaled(state.coefficients, torch.ones(B, 2), upstream))


def test_class_weights_and_label_smoothing_are_the_loss_alone() -> None:
    masked, target = numbers(3, B, 4).requires_grad_(), torch.randint(4, (B,), generator=generator())
    options: dict[str, Any] = {"weight": torch.rand(4, generator=generator()).double(), "label_smoothing": 0.2}
    state, plain = agm.ModulationState(2), agm.ModulationState(2)
    logits = agm.fused_modulate(masked, target, state, alpha=0.5)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target, **options), masked)
    joint = masked[-1].detach().requires_grad_()
    (upstream,) = torch.autograd.grad(F.cross_entropy(joint, target, **options), joint)
    torch.testing.assert_close(gradient, scaled(state.coefficients, torch.ones(B, 2), upstream))
    agm.fused_modulate_cross_entropy(masked, target, plain, alpha=0.5, **options)
    torch.testing.assert_close(plain.scores, state.scores)


@pytest.mark.parametrize("name", ["squared_error", "absolute_error"])
def test_the_unit_of_a_regression_makes_no_difference(name: str) -> None:
    """In metres and in millimetres the coefficients are the same; the ratios are those of the errors."""
    metres, millimetres = agm.ModulationState(2), agm.ModulationState(2)
    for seed in range(3):
        masked, target = numbers(3, B, 1, seed=seed), numbers(B, 1, seed=seed + 5)
        agm.fused_modulate(masked, target, metres, alpha=2.0, score=name)
        agm.fused_modulate(1000 * masked, 1000 * target, millimetres, alpha=2.0, score=name)
        torch.testing.assert_close(millimetres.coefficients, metres.coefficients, rtol=1e-9, atol=0)
        errors = torch.einsum("ms,sbk->mbk", WEIGHTS, masked) - target
        size = errors.square().mean((1, 2)).sqrt() if name == "squared_error" else errors.abs().mean((1, 2))
        torch.testing.assert_close(metres.ratios, size.flip(0) / size)
    assert metres.mono_correct.tolist() == [0, 0]
    assert metres.joint_correct == 0


def test_an_outlier_among_the_targets_draws_the_ratio_of_errors_to_one() -> None:
    masked, target = numbers(3, B, 1), numbers(B, 1, seed=1)
    target[0] = 1e6
    state = agm.ModulationState(2)
    agm.fused_modulate(masked, target, state, alpha=2.0, score="squared_error")
    torch.testing.assert_close(state.ratios, torch.ones(2, dtype=DOUBLE), rtol=1e-4, atol=0)


def test_without_any_error_a_step_is_skipped() -> None:
    state = agm.ModulationState(2)
    agm.fused_modulate(torch.zeros(3, B, 1), torch.zeros(B, 1), state, score="squared_error")
    assert state.skipped == 1
    assert state.coefficients.tolist() == [1, 1]
    assert not state.running_scores.any()


@pytest.mark.parametrize("name", ["binary_cross_entropy", "squared_error", "absolute_error"])
def test_one_output_needs_no_dimension_in_the_target(name: str) -> None:
    for inner in ((), (3,)):
        masked, target = numbers(3, B, *inner, 1), torch.rand(B, *inner, generator=generator()).round()
        states = [agm.ModulationState(2) for _ in range(2)]
        agm.fused_modulate(masked, target, states[0], score=name)
        agm.fused_modulate(masked, target.unsqueeze(-1), states[1], score=name)
        assert torch.equal(states[0].values, states[1].values)
        assert torch.equal(states[0].counts, states[1].counts)
        assert states[0].samples == B * math.prod(inner)


@pytest.mark.parametrize("name", [*TASKS, "own"])
def test_nothing_to_count_is_a_skipped_step(name: str) -> None:
    """An empty batch, and one of which no target is known."""
    task = TASKS["squared_error" if name == "own" else name]
    score: Any = own_error if name == "own" else name
    known = task.target((B, 2), 0)
    unknown = torch.full_like(known, torch.nan if known.is_floating_point() else -100)
    state = agm.ModulationState(2)
    for size, target in ((0, known[:0]), (B, unknown)):
        masked = numbers(3, size, 2, task.outputs).requires_grad_()
        (gradient,) = torch.autograd.grad(agm.fused_modulate(masked, target, state, score=score).sum(), masked)
        assert torch.equal(gradient[-1], torch.ones_like(masked[-1]))
        assert not gradient[:-1].any()
    assert state.skipped == 2
    assert state.step == 0
    assert not state.running_scores.any()


@pytest.mark.parametrize("target", [torch.int8, torch.bool, torch.float16, torch.bfloat16], ids=str)
def test_labels_of_any_dtype(target: torch.dtype) -> None:
    masked, labels = numbers(3, B, 5), torch.rand(B, 5, generator=generator()).round()
    states = [agm.ModulationState(2) for _ in range(2)]
    for state, given in zip(states, (labels, labels.to(target)), strict=True):
        agm.fused_modulate(masked, given, state, score="binary_cross_entropy")
    assert torch.equal(states[0].values, states[1].values)


@pytest.mark.parametrize("name", TASKS)
def test_logits_without_bounds(name: str) -> None:
    """The costs of probabilities are finite at any finite logit; an overflow is a skipped step."""
    task = TASKS[name]
    masked, target = numbers(3, B, task.outputs).float(), task.target((B,), 0)
    state = agm.ModulationState(2)
    agm.fused_modulate(1e4 * masked, target, state, score=name)
    assert state.step == 1
    masked[0, 0, 0] = torch.inf
    agm.fused_modulate(masked, target, state, score=name)
    assert state.skipped == 1


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU, where the values of a target are not read."""
    monkeypatch.setattr("agm.ops._checks.check_classes", lambda *_: None)
    monkeypatch.setattr("agm.modulation.scores._check_values", lambda *_: None)
    return


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", TASKS)
def test_a_step_reads_nothing_from_the_device(name: str, no_reads: TorchDispatchMode) -> None:
    task = TASKS[name]
    masked, target = numbers(3, B, 2, task.outputs).requires_grad_(), task.target((B, 2), 0)
    present, state = presence(0), agm.ModulationState(2)
    agm.fused_modulate(masked, target, state, score=name, present=present)  # makes the tables
    with no_reads:
        agm.fused_modulate(masked, target, state, score=name, present=present).sum().backward()
        agm.fused_modulate_additive(masked[:2], masked[:2, 0], target, state, score=name).sum().backward()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, wrong) for name in ("cross_entropy", "ordinal") for wrong in (5, -1)),
        *(("binary_cross_entropy", wrong) for wrong in (2, -0.5)),
    ],
)
def test_a_value_that_escaped_the_check_skips_the_step(name: str, wrong: float) -> None:
    target = torch.zeros(B, 4, 4) if name == "binary_cross_entropy" else torch.zeros(B, 4, dtype=torch.int64)
    target[1, 2] = wrong
    state = agm.ModulationState(2)
    agm.fused_modulate(numbers(3, B, 4, 4), target, state, score=name)
    assert state.skipped == 1
    assert state.step == 0


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "own"])
def test_compiles_in_one_graph_for_two_sizes(name: str) -> None:
    torch._dynamo.reset()
    task = TASKS["squared_error" if name == "own" else name]
    score = own_error if name == "own" else name

    def run(masked: Tensor, target: Tensor, state: agm.ModulationState) -> Tensor:
        return agm.fused_modulate(masked, target, state, alpha=0.5, score=score).square().sum()

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    eager_state, state = agm.ModulationState(2), agm.ModulationState(2)
    for size in (8, 13):
        target = task.target((size, 3), size)
        eager, traced = (numbers(3, size, 3, task.outputs).requires_grad_() for _ in range(2))
        run(eager, target, eager_state).backward()
        compiled(traced, target, state).backward()
        torch.testing.assert_close(traced.grad, eager.grad)
        torch.testing.assert_close(state.values, eager_state.values)
        assert torch.equal(state.counts, eager_state.counts)
