"""fused_modulate against the formulas of the paper, written out sample by sample in float64."""

import copy
import math

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import agm

from .batches import batch


class Oracle:
    """One training run of AGM, in Python numbers."""

    def __init__(self, modalities: int, alpha: float, max_gap: float, floor: float = 1e-8) -> None:
        self.weights = agm.subset_weights(modalities)
        self.running = [0.0] * modalities
        self.t = 0
        self.alpha, self.max_gap, self.floor = alpha, max_gap, floor

    @staticmethod
    def ratios(scores: list[float]) -> list[float]:
        others = len(scores) - 1
        return [math.exp(sum(s - own for s in scores) / others) for own in scores]

    def step(self, masked: Tensor, target: Tensor) -> dict[str, list[float]]:
        self.t += 1
        responses = torch.einsum("ms,sbc->mbc", self.weights, masked.double())
        scores = []
        for phi in responses:
            costs = [
                -math.log(max(float(torch.softmax(row, 0)[y]), self.floor))
                for row, y in zip(phi, target.tolist(), strict=True)
            ]
            scores.append(sum(costs) / len(costs))
        ratios, references = self.ratios(scores), self.ratios(self.running)
        kappa = [math.exp(self.alpha * min(tau - r, self.max_gap)) for r, tau in zip(ratios, references, strict=True)]
        self.running = [R * (self.t - 1) / self.t + s / self.t for R, s in zip(self.running, scores, strict=True)]
        scales = (torch.tensor(kappa, dtype=torch.float64) @ self.weights).tolist()
        correct = [int((phi.argmax(-1) == target).sum()) for phi in responses]
        return {
            "scores": scores, "ratios": ratios, "reference_ratios": references, "coefficients": kappa,
            "running_scores": self.running, "scales": scales, "mono_correct": correct,
        }  # fmt: skip


@pytest.mark.parametrize(("modalities", "alpha", "max_gap"), [(2, 1.5, 10.0), (3, 4.0, 7.0), (4, 0.7, None)])
def test_five_steps_against_the_formulas(modalities: int, alpha: float, max_gap: float | None) -> None:
    oracle = Oracle(modalities, alpha, math.inf if max_gap is None else max_gap)
    state = agm.ModulationState(modalities)
    for step in range(5):
        masked, target = batch(modalities, 11, 5, seed=step)
        masked.requires_grad_()
        logits = agm.fused_modulate(masked, target, state, alpha=alpha, max_gap=max_gap)
        assert torch.equal(logits, masked[-1])
        expected = oracle.step(masked.detach(), target)
        for name in ("scores", "ratios", "reference_ratios", "coefficients", "running_scores", "mono_correct"):
            torch.testing.assert_close(
                getattr(state, name).double(), torch.tensor(expected[name], dtype=torch.float64), rtol=1e-12, atol=0
            )
        assert state.joint_correct.item() == (masked[-1].argmax(-1) == target).sum()
        assert state.samples.item() == 11
        assert state.step.item() == step + 1
        upstream = torch.randn_like(logits)
        logits.backward(upstream)
        scales = torch.tensor(expected["scales"], dtype=torch.float64)
        torch.testing.assert_close(masked.grad, scales[:, None, None] * upstream, rtol=1e-12, atol=1e-14)


def test_the_floor_bounds_each_sample() -> None:
    masked, target = batch(2, 6, 3, scale=200.0)
    state = agm.ModulationState(2)
    agm.fused_modulate(masked, target, state, floor=1e-3)
    expected = Oracle(2, 1.0, 10.0, floor=1e-3).step(masked, target)
    torch.testing.assert_close(state.scores, torch.tensor(expected["scores"], dtype=torch.float64))
    assert state.scores.max() <= -math.log(1e-3)


def test_without_a_floor_scores_are_plain_cross_entropies() -> None:
    masked, target = batch(2, 6, 3, scale=50.0)
    state = agm.ModulationState(2)
    agm.fused_modulate(masked, target, state, floor=0.0, alpha=0.0)
    phi = torch.einsum("ms,sbc->mbc", agm.subset_weights(2), masked)
    torch.testing.assert_close(state.scores, torch.stack([F.cross_entropy(p, target) for p in phi]))


def test_alpha_zero_is_joint_training_bit_for_bit() -> None:
    masked, target = batch(3, 7, 4)
    masked = masked.float().requires_grad_()
    upstream = torch.randn(7, 4)
    agm.fused_modulate(masked, target, agm.ModulationState(3), alpha=0.0).backward(upstream)
    assert masked.grad is not None
    assert torch.equal(masked.grad[-1], upstream)
    assert not masked.grad[:-1].any()


# What the coefficients may differ by from those of the same logits, rounded, in float64.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_low_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    masked, target = batch(3, 33, 10)
    masked = masked.to(dtype).requires_grad_()
    exact, state = agm.ModulationState(3), agm.ModulationState(3)
    agm.fused_modulate(masked.detach().double(), target, exact)
    logits = agm.fused_modulate(masked, target, state)
    assert logits.dtype == dtype
    torch.testing.assert_close(state.coefficients, exact.coefficients, rtol=TOLERANCES[dtype], atol=0)
    logits.sum().backward()
    assert masked.grad is not None
    assert masked.grad.dtype == dtype
    scales = exact.coefficients @ agm.subset_weights(3)
    torch.testing.assert_close(masked.grad[:, 0, 0].double(), scales, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-6)


@pytest.mark.parametrize("ignore_index", [-100, 0, 2])
def test_ignored_rows_count_in_nothing(ignore_index: int) -> None:
    masked, target = batch(2, 12, 4)
    target = torch.where(target == ignore_index, 1, target)
    ignored = torch.tensor([0, 3, 7])
    kept = torch.tensor([i for i in range(12) if i not in ignored])
    holes = target.clone()
    holes[ignored] = ignore_index
    state, expected = agm.ModulationState(2), agm.ModulationState(2)
    agm.fused_modulate(masked, holes, state, ignore_index=ignore_index)
    agm.fused_modulate(masked[:, kept], target[kept], expected)
    torch.testing.assert_close(state.values, expected.values)
    assert torch.equal(state.counts, expected.counts)


@pytest.mark.parametrize("kind", ["nan", "inf", "empty", "ignored"])
def test_a_step_without_finite_scores_is_skipped(kind: str) -> None:
    state = agm.ModulationState(2)
    masked, target = batch(2, 8, 3)
    agm.fused_modulate(masked, target, state, alpha=2.0)
    running, step = state.running_scores.clone(), state.step.clone()
    if kind == "empty":
        masked, target = masked[:, :0], target[:0]
    elif kind == "ignored":
        target = torch.full_like(target, -100)
    else:
        masked[1, 2, 0] = float(kind)
    masked.requires_grad_()
    logits = agm.fused_modulate(masked, target, state, alpha=2.0)
    assert torch.equal(state.running_scores, running)
    assert torch.equal(state.step, step)
    assert state.skipped.item() == 1
    assert state.coefficients.tolist() == [1.0, 1.0]
    logits.backward(torch.ones_like(logits))
    assert masked.grad is not None
    assert (masked.grad[:2] == 0).all()
    assert (masked.grad[2] == 1).all()
    agm.fused_modulate(*batch(2, 8, 3, seed=5), state)
    assert state.step.item() == 2
    assert state.running_scores.isfinite().all()


def test_an_overflowing_coefficient_is_skipped_too() -> None:
    state = agm.ModulationState(2)
    masked = torch.zeros(3, 4, 2, dtype=torch.float64)
    masked[0, :, 1] = 1e3  # the first modality is wrong by far, so its ratio is small and tau grows
    target = torch.zeros(4, dtype=torch.int64)
    state.running_scores.copy_(torch.tensor([0.0, 700.0]))
    agm.fused_modulate(masked, target, state, alpha=5.0, max_gap=None)
    assert state.skipped.item() == 1
    assert state.coefficients.tolist() == [1.0, 1.0]


def test_a_coefficient_that_float32_cannot_hold_is_skipped() -> None:
    """It is finite in float64, where it is computed, but the gradient that it scales would not be."""
    state = agm.ModulationState(2)
    state.running_scores.copy_(torch.tensor([1.0, 5.2]))
    state.step.fill_(100)
    masked = torch.zeros(3, 8, 300, requires_grad=True)
    target = torch.arange(8)
    agm.fused_modulate(masked, target, state, alpha=1.5, max_gap=None).sum().backward()
    assert state.reference_ratios[0] * 1.5 > math.log(torch.finfo(torch.float32).max)
    assert state.skipped.item() == 1
    assert masked.grad.isfinite().all()


def test_update_false_leaves_the_state_alone() -> None:
    state = agm.ModulationState(2)
    agm.fused_modulate(*batch(2, 8, 3), state)
    before = copy.deepcopy(state)
    masked, target = batch(2, 8, 3, seed=1)
    masked.requires_grad_()
    agm.fused_modulate(masked, target, state, alpha=3.0, update=False).sum().backward()
    assert torch.equal(state.values, before.values)
    assert torch.equal(state.counts, before.counts)
    modulated = masked.grad
    masked.grad = None
    agm.fused_modulate(masked, target, state, alpha=3.0).sum().backward()
    assert torch.equal(masked.grad, modulated)


def test_several_forwards_before_a_backward_keep_their_own_scales() -> None:
    together, apart = agm.ModulationState(2), agm.ModulationState(2)
    batches = [batch(2, 8, 3, seed=s) for s in range(3)]
    inputs = [masked.clone().requires_grad_() for masked, _ in batches]
    outputs = [agm.fused_modulate(x, y, together, alpha=2.0) for x, (_, y) in zip(inputs, batches, strict=True)]
    sum(o.square().sum() for o in outputs).backward()  # type: ignore[union-attr]
    for x, (masked, y) in zip(inputs, batches, strict=True):
        masked.requires_grad_()
        agm.fused_modulate(masked, y, apart, alpha=2.0).square().sum().backward()
        assert torch.equal(x.grad, masked.grad)


def test_permuted_and_sliced_logits() -> None:
    masked, target = batch(3, 9, 6)
    expected, state = agm.ModulationState(3), agm.ModulationState(3)
    agm.fused_modulate(masked, target, expected)
    strided = torch.empty(6, 9, 14, dtype=torch.float64).permute(2, 1, 0)[::2]
    strided.copy_(masked)
    padded_target = torch.stack([target, target], 1)[:, 0]
    agm.fused_modulate(strided, padded_target, state)
    torch.testing.assert_close(state.values, expected.values, rtol=1e-13, atol=0)


def test_gradient_with_unit_coefficients_is_that_of_the_last_row() -> None:
    masked, target = batch(2, 4, 3)
    masked.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: agm.fused_modulate(z, target, agm.ModulationState(2), alpha=0.0), (masked,)
    )


def test_a_second_derivative_is_refused() -> None:
    masked, target = batch(2, 4, 3)
    masked.requires_grad_()
    logits = agm.fused_modulate(masked, target, agm.ModulationState(2))
    (first,) = torch.autograd.grad(logits.square().sum(), masked, create_graph=True)
    with pytest.raises(RuntimeError, match="`fused_modulate` not to be differentiated again"):
        first.sum().backward()


class Synchronisations(TorchDispatchMode):
    """Counts what would wait for a GPU: reading a number, or shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero", "masked_select", "_to_copy_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if any(name in str(func) for name in self.NAMES):
            self.found.append(str(func))
        return func(*args, **kwargs or {})


def test_a_step_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # The range of the class indices is checked on a CPU alone; everything else must run as it would on a GPU.
    monkeypatch.setattr("agm.ops._checks.check_classes", lambda *_: None)
    masked, target = batch(3, 9, 6)
    masked.requires_grad_()
    state = agm.ModulationState(3)
    with Synchronisations() as mode:
        loss, _ = agm.fused_modulate_cross_entropy(masked, target, state, alpha=2.0)
        loss.backward()
    assert mode.found == []


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("function", ["logits", "loss"])
def test_compiles_in_one_graph_for_two_sizes(function: str) -> None:
    torch._dynamo.reset()

    def run(masked: Tensor, target: Tensor, state: agm.ModulationState) -> Tensor:
        if function == "loss":
            return agm.fused_modulate_cross_entropy(masked, target, state, alpha=2.0, label_smoothing=0.1)[0]
        return agm.fused_modulate(masked, target, state, alpha=2.0).square().sum()

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    eager_state, state = agm.ModulationState(2), agm.ModulationState(2)
    for size in (8, 13):
        masked, target = batch(2, size, 5, seed=size)
        eager, traced = masked.clone().requires_grad_(), masked.clone().requires_grad_()
        run(eager, target, eager_state).backward()
        compiled(traced, target, state).backward()
        torch.testing.assert_close(traced.grad, eager.grad)
        torch.testing.assert_close(state.values, eager_state.values)
        assert torch.equal(state.counts, eager_state.counts)
