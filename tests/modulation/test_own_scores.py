"""A score that the user writes."""

from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

import agm

from .scores_oracle import WEIGHTS, B, generator, neutral, numbers, presence, scaled


class TestOwn:
    def test_is_the_mean_of_what_it_returns(self) -> None:
        masked, target = numbers(3, B, 4).requires_grad_(), torch.randint(4, (B,), generator=generator())
        given = []

        def score(response: Tensor, target: Tensor) -> Tensor:
            given.append(response)
            return F.cross_entropy(response, target, reduction="none")

        own, plain = agm.ModulationState(2), agm.ModulationState(2)
        logits = agm.fused_modulate(masked, target, own, alpha=0.5, score=score)
        agm.fused_modulate(masked, target, plain, alpha=0.5, floor=0.0)
        torch.testing.assert_close(own.values, plain.values, rtol=1e-12, atol=0)
        assert own.samples == B
        assert own.mono_correct.tolist() == [0, 0]
        assert [one.requires_grad for one in given] == [False, False]
        responses = torch.einsum("ms,sbc->mbc", WEIGHTS, masked.detach())
        torch.testing.assert_close(torch.stack(given), responses, rtol=1e-14, atol=1e-15)
        (gradient,) = torch.autograd.grad(logits.sum(), masked)
        torch.testing.assert_close(gradient, scaled(own.coefficients, torch.ones(B, 2), torch.ones_like(logits)))

    @pytest.mark.parametrize("lacking", [False, True])
    @pytest.mark.parametrize("shape", ["samples", "tokens", "in a row", "outputs"])
    def test_costs_of_any_shape(self, shape: str, lacking: bool) -> None:
        """Each in the mean of the samples that have the modality, without what has no target at all."""
        present = presence(1) if lacking else torch.ones(B, 2, dtype=torch.bool)
        masked = neutral(numbers(3, B, 3, 2), present)
        target = numbers(B, 3, 2, seed=1)
        target[2], target[3, 1], target[4, 0, 0] = torch.nan, torch.nan, torch.nan

        def score(response: Tensor, target: Tensor) -> Tensor:
            error = (response - target).abs()
            costs = {"samples": error.nansum((1, 2)), "tokens": error.nansum(2), "outputs": error}
            return costs["tokens"].flatten() if shape == "in a row" else costs[shape]

        state = agm.ModulationState(2)
        agm.fused_modulate(masked, target, state, score=score, present=present if lacking else None)
        own = present.double().view(B, 2, 1, 1)
        shares = torch.where(present.all(1).view(B, 1, 1), torch.einsum("ms,sbtk->mbtk", WEIGHTS, masked), masked[2])
        for m in range(2):
            error = (shares[m] - target).abs()[own[:, m, 0, 0] == 1]
            dims = {"samples": (1, 2), "tokens": (2,), "in a row": (2,), "outputs": ()}[shape]
            known = ~error.isnan().flatten(error.dim() - len(dims)).all(-1) if dims else ~error.isnan()
            costs = error.nansum(dims) if dims else error
            torch.testing.assert_close(state.scores[m], costs[known].mean())
        assert state.samples == {"samples": 6, "tokens": 17, "in a row": 17, "outputs": 33}[shape]

    def test_a_cost_that_is_not_finite_skips_the_step(self) -> None:
        state = agm.ModulationState(2)
        agm.fused_modulate(numbers(3, B, 2), torch.zeros(B), state, score=lambda response, target: 1 / target)
        assert state.skipped == 1

    def test_a_module_moves_and_is_saved_with_the_modulator(self) -> None:
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), reduction="none")
        modulator = agm.Modulator(("a", "b"), score=loss).double()
        target = torch.randint(4, (B,), generator=generator())
        masked = numbers(3, B, 4)
        modulator(masked.requires_grad_(), target)
        phi = torch.einsum("ms,sbc->mbc", WEIGHTS, masked.detach())
        expected = torch.stack([F.cross_entropy(one, target, loss.weight, reduction="none").mean() for one in phi])
        torch.testing.assert_close(modulator.state.scores, expected)
        assert "score.weight" in modulator.state_dict()

    @pytest.mark.parametrize(
        ("score", "error", "message"),
        [
            (lambda response, target: response.mean(), ValueError, r"of shape \(7,\) or \(7, 2\), but got \(\)"),
            (lambda response, target: response.sum((1, 2))[:5], ValueError, r"but got \(5,\)"),
            (lambda response, target: response.sum(2).T, ValueError, r"but got \(2, 7\)"),
            (lambda response, target: response.argmax(-1), TypeError, "int64"),
            (lambda response, target: 1.0, TypeError, "float"),
        ],
    )
    def test_what_it_may_not_return(self, score: Any, error: type[Exception], message: str) -> None:
        state = agm.ModulationState(2)
        with pytest.raises(error, match=message):
            agm.fused_modulate(numbers(3, B, 2, 3), torch.zeros(B), state, score=score)
        assert state.step == 0
