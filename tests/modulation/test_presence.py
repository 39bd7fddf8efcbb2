"""Samples that lack modalities: each plays the game of its own modalities."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

import agm

B, C = 9, 4


def worths(modalities: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What each set of modalities is worth to each sample (2**M, B, C); present; target."""
    generator = torch.Generator().manual_seed(seed)
    worth = torch.randn(2**modalities, B, C, generator=generator, dtype=torch.float64)
    present = torch.rand(B, modalities, generator=generator) < 0.6
    present[0] = True
    present[1], present[1, 0] = False, True
    present[present.sum(1) == 0, modalities - 1] = True
    return worth, present, torch.randint(C, (B,), generator=generator)


def game(modalities: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Masked logits (2**M - 1, B, C), in which modalities that a sample lacks change nothing; present; target."""
    worth, present, target = worths(modalities, seed)
    return masked(worth, present), present, target


def masked(worth: Tensor, present: Tensor) -> Tensor:
    subsets = range(1, len(worth))
    return torch.stack([torch.stack([worth[s & mask(one), i] for i, one in enumerate(present)]) for s in subsets])


def mask(row: Tensor) -> int:
    return sum(1 << m for m, here in enumerate(row.tolist()) if here)


def own_responses(rows: Tensor, present: Tensor) -> Tensor:
    """By the definition: for each sample the mean over the orders in which its own modalities may join."""
    modalities = present.shape[1]
    responses = torch.zeros(modalities, *rows.shape[1:], dtype=rows.dtype)
    for i, one in enumerate(present):
        own = one.nonzero().flatten().tolist()
        full = mask(one)
        for order in permutations(own):
            joined, before = 0, torch.zeros(C, dtype=rows.dtype)
            for m in order:
                joined |= 1 << m
                after = rows[-1, i] if joined == full else rows[joined - 1, i]
                responses[m, i] = responses[m, i] + (after - before) / math.factorial(len(own))
                before = after
    return responses


def own_step(responses: Tensor, present: Tensor, target: Tensor, running: Tensor, t: int, alpha: float) -> Tensor:
    """Coefficients by plain Python; `running` is updated in place."""
    modalities = len(responses)
    scores, seen = {}, []
    for m in range(modalities):
        costs = [
            -responses[m, i].log_softmax(0)[target[i]].item() for i in range(B) if present[i, m] and target[i] != -100
        ]
        if costs:
            scores[m] = sum(costs) / len(costs)
            seen.append(m)
    history = {m: running[m].item() or (scores[m] if running.any() else 0.0) for m in seen}
    kappa = torch.ones(modalities, dtype=torch.float64)
    for m in seen:
        others = [j for j in seen if j != m]
        if others:
            ratio = math.exp(sum(scores[j] - scores[m] for j in others) / len(others))
            reference = math.exp(sum(history[j] - history[m] for j in others) / len(others))
            kappa[m] = math.exp(alpha * min(reference - ratio, 10.0))
    for m in seen:
        running[m] = scores[m] if running[m] == 0 else running[m] * (t - 1) / t + scores[m] / t
    return kappa


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_each_sample_plays_the_game_of_its_own_modalities(modalities: int) -> None:
    state = agm.ModulationState(modalities)
    running = torch.zeros(modalities, dtype=torch.float64)
    for t in range(1, 4):
        worth, present, target = worths(modalities, seed=t)
        worth.requires_grad_()
        rows = masked(worth, present)
        target[3] = -100
        expected = own_responses(rows, present)
        kappa = own_step(expected.detach(), present, target, running, t, alpha=0.7)
        logits = agm.fused_modulate(rows, target, state, alpha=0.7, present=present)
        assert torch.equal(logits, rows[-1])
        torch.testing.assert_close(state.coefficients, kappa, rtol=1e-10, atol=0)
        torch.testing.assert_close(state.running_scores, running, rtol=1e-10, atol=0)
        upstream = torch.randn(B, C, dtype=torch.float64)
        (got,) = torch.autograd.grad(logits, worth, upstream, retain_graph=True)
        (wanted,) = torch.autograd.grad((kappa.view(-1, 1, 1) * expected).sum(0), worth, upstream)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        used = target != -100
        hits = (expected.argmax(-1).eq(target) & present.T & used).sum(1)
        assert state.mono_correct.tolist() == hits.tolist()


def test_all_present_is_the_usual_step() -> None:
    rows, _, target = game(3)
    states = [agm.ModulationState(3) for _ in range(2)]
    everything = torch.ones(B, 3, dtype=torch.bool)
    for _ in range(3):
        agm.fused_modulate(rows, target, states[0], alpha=2.0, backend="reference")
        agm.fused_modulate(rows, target, states[1], alpha=2.0, present=everything)
        torch.testing.assert_close(states[0].values, states[1].values, rtol=1e-12, atol=0)
        assert torch.equal(states[0].counts, states[1].counts)


def test_a_modality_that_nobody_has() -> None:
    """It keeps its running score and takes no part; met later, its first score is all its history."""
    rows, present, target = game(3)
    present = present.clone()
    present[:, 2] = False
    present[:, 0] = True
    state = agm.ModulationState(3)
    agm.fused_modulate(rows, target, state, alpha=1.0, present=present)
    assert state.scores.isnan().tolist() == [False, False, True]
    assert state.values[[0, 2, 3, 4]].isfinite().all()
    assert state.running_scores[2] == 0
    assert state.coefficients[2] == 1
    assert state.step == 1
    everything = torch.ones_like(present)
    agm.fused_modulate(rows, target, state, alpha=1.0, present=everything)
    assert state.running_scores[2] == state.scores[2] > 0
    assert state.coefficients.isfinite().all()
    history = torch.stack([*state.running_scores[:2] * 2 - state.scores[:2], state.scores[2]])
    expected = ((history.sum() - 3 * history) / 2).exp()
    torch.testing.assert_close(state.reference_ratios, expected)


def test_one_modality_alone_is_not_modulated() -> None:
    rows, present, target = game(2)
    present = torch.tensor([[True, False]] * B)
    rows.requires_grad_()
    state = agm.ModulationState(2)
    logits = agm.fused_modulate(rows, target, state, alpha=3.0, present=present)
    (grad,) = torch.autograd.grad(logits.sum(), rows)
    assert state.coefficients.tolist() == [1, 1]
    assert torch.equal(grad[-1], torch.ones(B, C, dtype=torch.float64))
    assert grad[:-1].count_nonzero() == 0


def test_a_sample_without_any_modality() -> None:
    """It counts in no score; its joint logits have the mean coefficient, as what belongs to all modalities."""
    rows, present, target = game(3)
    present = present.clone()
    present[4] = False
    rows.requires_grad_()
    states = [agm.ModulationState(3) for _ in range(2)]
    logits = agm.fused_modulate(rows, target, states[0], alpha=1.0, present=present)
    (grad,) = torch.autograd.grad(logits[4].sum(), rows)
    torch.testing.assert_close(grad[-1, 4], states[0].coefficients.mean().expand(C))
    others = target.clone()
    others[4] = -100
    agm.fused_modulate(rows, others, states[1], alpha=1.0, present=present)
    assert torch.equal(states[0].scores, states[1].scores)


@pytest.mark.parametrize("modalities", [2, 5])
@pytest.mark.parametrize("given_joint", [False, True])
def test_additive_fusions(modalities: int, given_joint: bool) -> None:
    """Equal to the stack of all subsets, with the absent rows in place where a sample lacks a modality."""
    torch.manual_seed(modalities)
    double = torch.float64
    parts = torch.randn(modalities, B, C, dtype=double, requires_grad=True)
    absent = torch.randn(modalities, C, dtype=double, requires_grad=True)
    bias = torch.randn(C, dtype=double, requires_grad=True)
    joint = torch.randn(B, C, dtype=double, requires_grad=True)
    target = torch.randint(C, (B,))
    available = torch.rand(B, modalities) < 0.5
    available[2] = False
    here = torch.where(available.T.unsqueeze(-1), parts, absent.unsqueeze(1))
    rows = torch.stack(
        [
            bias + sum(here[m] if subset >> m & 1 else absent[m].expand(B, C) for m in range(modalities))
            for subset in range(1, 2**modalities)
        ]
    )
    if given_joint:
        rows = torch.cat([rows[:-1], joint.unsqueeze(0)])
    states = [agm.ModulationState(modalities) for _ in range(2)]
    expected = agm.fused_modulate(rows, target, states[0], alpha=0.5, present=available)
    with torch.no_grad():  # what is not looked at may be anything
        parts[~available.T] = torch.nan
    given = {"joint_logits": joint} if given_joint else {"bias": bias}
    logits = agm.fused_modulate_additive(parts, absent, target, states[1], alpha=0.5, available=available, **given)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(states[1].values, states[0].values)
    assert torch.equal(states[1].counts, states[0].counts)
    upstream = torch.randn(B, C, dtype=double)
    leaves = [parts, absent, joint if given_joint else bias]
    got = torch.autograd.grad(logits, leaves, upstream)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_beside_the_logits() -> None:
    rows, present, target = game(3)
    rows.requires_grad_()
    states = [agm.ModulationState(3) for _ in range(2)]
    options = {"weight": torch.rand(C), "label_smoothing": 0.1}
    loss, logits = agm.fused_modulate_cross_entropy(rows, target, states[0], present=present, **options)
    own = agm.fused_modulate(rows, target, states[1], present=present)
    expected = torch.nn.functional.cross_entropy(own, target, options["weight"].double(), label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    (got,), (wanted,) = torch.autograd.grad(loss, rows), torch.autograd.grad(expected, rows)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(logits, rows[-1])


@pytest.mark.parametrize(
    ("present", "error", "message"),
    [
        (torch.ones(B, 2), TypeError, "torch.bool"),
        (torch.ones(B, 3, dtype=torch.bool), ValueError, r"shape \(9, 2\)"),
        (torch.ones(2, B, dtype=torch.bool), ValueError, r"shape \(9, 2\)"),
        ([[True, True]] * B, TypeError, "list"),
    ],
)
def test_bad_input(present: object, error: type[Exception], message: str) -> None:
    rows, _, target = game(2)
    state = agm.ModulationState(2)
    with pytest.raises(error, match=message):
        agm.fused_modulate(rows, target, state, present=present)
    with pytest.raises(error, match=message):
        agm.fused_modulate_additive(rows[:2], rows[:2, 0], target, state, available=present)
    assert state.step == 0


def test_a_backend_by_name_that_does_not_serve() -> None:
    rows, present, target = game(2)
    with pytest.raises(RuntimeError, match="cannot serve `present`"):
        agm.fused_modulate(rows, target, agm.ModulationState(2), present=present, backend="cpp")
