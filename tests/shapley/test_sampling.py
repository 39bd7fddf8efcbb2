"""Sampled subsets: unbiased estimates of the Shapley values that sum to the joint logits."""

import math
from itertools import permutations

import pytest
import torch

import agm

C = 3


@pytest.mark.parametrize(("modalities", "subsets"), [(2, 2), (3, 4), (4, 6), (4, 13), (6, 20), (16, 60)])
def test_the_responses_sum_to_the_joint_logits(modalities: int, subsets: int) -> None:
    sample = agm.sample_subsets(modalities, subsets, torch.Generator().manual_seed(0))
    proper = 2 * (modalities - 1)
    expected = 2**modalities - 2 if subsets >= 2**modalities - 2 else subsets // proper * proper
    assert len(sample.subsets) == expected + 1
    assert sample.subsets[-1] == 2**modalities - 1
    assert all(0 < subset < 2**modalities - 1 for subset in sample.subsets[:-1])
    total = sample.weights.sum(0)
    torch.testing.assert_close(total[:-1], torch.zeros(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(total[-1], torch.tensor(1.0, dtype=torch.float64))


def test_the_estimate_is_unbiased() -> None:
    """The mean over all orders is the exact value: each order with its reverse is drawn by feeding the generator."""
    modalities = 4
    worth = torch.randn(2**modalities, dtype=torch.float64)
    worth[0] = 0
    exact = agm.subset_weights(modalities) @ worth[1:]
    found = {}
    generator = torch.Generator().manual_seed(1)
    while len(found) < math.factorial(modalities):
        seen = generator.get_state()
        order = tuple(torch.randperm(modalities, generator=generator).tolist())
        generator.set_state(seen)
        sample = agm.sample_subsets(modalities, 6, generator)
        estimate = sample.weights @ worth[list(sample.subsets)]
        one_way = torch.zeros(modalities, dtype=torch.float64)
        for way in (order, order[::-1]):
            joined = 0
            for m in way:
                one_way[m] += (worth[joined | 1 << m] - worth[joined]) / 2
                joined |= 1 << m
        torch.testing.assert_close(estimate, one_way)
        found[order] = estimate
    assert set(found) == set(permutations(range(modalities)))
    torch.testing.assert_close(torch.stack(list(found.values())).mean(0), exact)


def test_enough_subsets_are_all_of_them() -> None:
    sample = agm.sample_subsets(3, 6)
    assert sample.subsets == tuple(range(1, 8))
    assert torch.equal(sample.weights, agm.subset_weights(3))


def test_the_same_seed_draws_the_same() -> None:
    first, second, third = (agm.sample_subsets(8, 28, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.subsets == second.subsets
    assert torch.equal(first.weights, second.weights)
    assert first.subsets != third.subsets


def test_a_step_with_sampled_subsets() -> None:
    """Against its formulas: responses by the weights, gradients scaled by the coefficients' share of each row."""
    modalities, batch = 5, 6
    sample = agm.sample_subsets(modalities, 16, torch.Generator().manual_seed(2))
    rows = torch.randn(len(sample.subsets), batch, C, dtype=torch.float64, requires_grad=True)
    target = torch.randint(C, (batch,))
    state = agm.ModulationState(modalities)
    logits = agm.fused_modulate(rows, target, state, alpha=1.0, sample=sample)
    responses = torch.einsum("mr,rbc->mbc", sample.weights, rows)
    scores = torch.stack([torch.nn.functional.cross_entropy(one, target) for one in responses]).detach()
    torch.testing.assert_close(state.scores, scores)
    ratios = ((scores.sum() - modalities * scores) / (modalities - 1)).exp()
    kappa = (1.0 - ratios).clamp(max=10).exp()
    torch.testing.assert_close(state.coefficients, kappa)
    upstream = torch.randn(batch, C, dtype=torch.float64)
    (got,) = torch.autograd.grad(logits, rows, upstream)
    (wanted,) = torch.autograd.grad((kappa.view(-1, 1, 1) * responses).sum(0), rows, upstream)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: agm.sample_subsets(4, 5), ValueError, "at least 6 for 4 modalities"),
        (lambda: agm.sample_subsets(4, 8.0), TypeError, "integer"),
        (lambda: agm.sample_subsets(17, 80), ValueError, "from 2 to 16"),
        (
            lambda: agm.fused_modulate(
                torch.zeros(7, 2, C), torch.zeros(2).long(), agm.ModulationState(4), sample=agm.sample_subsets(4, 6)
            ),
            None,
            None,
        ),
        (
            lambda: agm.fused_modulate(
                torch.zeros(15, 2, C), torch.zeros(2).long(), agm.ModulationState(4), sample=agm.sample_subsets(4, 6)
            ),
            ValueError,
            "7 rows, one for each subset",
        ),
        (
            lambda: agm.fused_modulate(
                torch.zeros(7, 2, C), torch.zeros(2).long(), agm.ModulationState(3), sample=agm.sample_subsets(4, 6)
            ),
            ValueError,
            "of the 3 modalities",
        ),
    ],
)
def test_bad_input(call, error: type[Exception] | None, message: str | None) -> None:  # type: ignore[no-untyped-def]
    if error is None:
        call()
        return
    with pytest.raises(error, match=message):
        call()
