"""Scores of other tasks than one class a sample, against their formulas in Python numbers, position by position."""

import copy
import math
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import agm

B, FLOOR = 7, 0.05
WEIGHTS = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64) / 2  # of z_a, z_b and z_ab
DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=generator(seed), dtype=DOUBLE)


def capped(probability: float) -> float:
    return -math.log(max(probability, FLOOR))


def binary(logit: float, label: float) -> float:
    yes = 1 / (1 + math.exp(-logit))
    return label * capped(yes) + (1 - label) * capped(1 - yes)


@dataclass(frozen=True)
class Task:
    """A score: its targets, and by the formula what one response costs, None if nothing is known of its target."""

    outputs: int
    target: Callable[[tuple[int, ...], int], Tensor]  # of positions (B, ...) and a seed
    cost: Callable[[list[float], Any], float | None]
    hit: Callable[[list[float], Any], bool]
    of_mean: Callable[[float], float] = lambda mean: mean


def classes(count: int) -> Callable[[tuple[int, ...], int], Tensor]:
    def target(places: tuple[int, ...], seed: int) -> Tensor:
        found = torch.randint(count, places, generator=generator(seed))
        found.view(-1)[[2, -1]] = -100
        return found

    return target


def soft(places: tuple[int, ...], seed: int) -> Tensor:
    target = numbers(*places, 4, seed=seed).softmax(-1)
    target.view(-1, 4)[2] = torch.nan
    target.view(-1, 4)[3] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    return target


def labels(places: tuple[int, ...], seed: int) -> Tensor:
    target = torch.rand(*places, 5, generator=generator(seed)).round().double()
    target.view(-1, 5)[1] = -100
    target.view(-1, 5)[2, 3:] = -100
    return target.long()


def reals(places: tuple[int, ...], seed: int) -> Tensor:
    target = numbers(*places, 3, seed=seed)
    target.view(-1, 3)[1] = torch.nan
    target.view(-1, 3)[2, 0] = torch.nan
    return target


def best(row: list[float]) -> int:
    return row.index(max(row))


def class_cost(row: list[float], y: int) -> float | None:
    return None if y == -100 else capped(math.exp(row[y]) / sum(map(math.exp, row)))


def soft_cost(row: list[float], y: list[float]) -> float | None:
    total = sum(map(math.exp, row))
    cost = sum(q * capped(math.exp(z) / total) for z, q in zip(row, y, strict=True))
    return None if math.isnan(sum(y)) else cost


def label_cost(row: list[float], y: list[int]) -> float | None:
    costs = [binary(z, q) for z, q in zip(row, y, strict=True) if q != -100]
    return sum(costs) / len(costs) if costs else None


def label_hit(row: list[float], y: list[int]) -> bool:
    return all((z > 0) == (q == 1) for z, q in zip(row, y, strict=True) if q != -100)


def rank_cost(row: list[float], y: int) -> float | None:
    return None if y == -100 else sum(binary(z, y > k) for k, z in enumerate(row)) / len(row)


def rank_hit(row: list[float], y: int) -> bool:
    return sum(z > 0 for z in row) == y


def error_cost(power: int) -> Callable[[list[float], list[float]], float | None]:
    def cost(row: list[float], y: list[float]) -> float | None:
        errors = [abs(z - q) ** power for z, q in zip(row, y, strict=True) if not math.isnan(q)]
        return sum(errors) / len(errors) if errors else None

    return cost


def no_hit(row: list[float], y: Any) -> bool:
    return False


TASKS = {
    "cross_entropy": Task(4, classes(4), class_cost, lambda row, y: best(row) == y),
    "soft_cross_entropy": Task(4, soft, soft_cost, lambda row, y: best(row) == best(y)),
    "binary_cross_entropy": Task(5, labels, label_cost, label_hit),
    "ordinal": Task(3, classes(4), rank_cost, rank_hit),
    "squared_error": Task(3, reals, error_cost(2), no_hit, lambda mean: math.log(math.sqrt(mean))),
    "absolute_error": Task(3, reals, error_cost(1), no_hit, math.log),
}


class Oracle:
    """A run of AGM with two modalities, in Python numbers."""

    def __init__(self, task: Task, alpha: float) -> None:
        self.task, self.alpha, self.t, self.running = task, alpha, 0, [0.0, 0.0]

    def step(self, masked: Tensor, target: Tensor, present: Tensor) -> dict[str, list[float]]:
        """Of masked logits (3, B, ..., C); in the rows of a sample that lacks a modality it makes no difference."""
        self.t += 1
        costs: list[list[float]] = [[], []]
        hits, samples = [0, 0, 0], 0
        for b, one in enumerate(present.tolist()):
            places = masked[0, b].reshape(-1, self.task.outputs).shape[0]
            rows = masked[:, b].reshape(3, places, -1)
            targets = target[b].reshape(places, *target.shape[masked.dim() - 2 :]).tolist()
            for place, y in enumerate(targets):
                joint = rows[2, place]
                responses = WEIGHTS @ rows[:, place] if all(one) else torch.stack([joint * here for here in one])
                if self.task.cost(joint.tolist(), y) is None:
                    continue
                samples += 1
                hits[2] += self.task.hit(joint.tolist(), y)
                for m, here in enumerate(one):
                    if here:
                        cost = self.task.cost(responses[m].tolist(), y)
                        assert cost is not None
                        costs[m].append(cost)
                        hits[m] += self.task.hit(responses[m].tolist(), y)
        scores = [self.task.of_mean(sum(own) / len(own)) for own in costs]
        gaps = [scores[1] - scores[0], self.running[1] - self.running[0]]
        ratio, reference = (math.exp(gap) for gap in gaps)
        kappa = [
            math.exp(self.alpha * min(tau - r, 10.0)) for r, tau in ((ratio, reference), (1 / ratio, 1 / reference))
        ]
        self.running = [R * (self.t - 1) / self.t + s / self.t for R, s in zip(self.running, scores, strict=True)]
        return {
            "scores": scores, "coefficients": kappa, "running_scores": self.running,
            "mono_correct": hits[:2], "joint_correct": hits[2:], "samples": [samples],
        }  # fmt: skip


def assert_state(state: agm.ModulationState, expected: dict[str, list[float]]) -> None:
    for name, value in expected.items():
        got = getattr(state, name).reshape(-1).double()
        torch.testing.assert_close(got, torch.tensor(value, dtype=DOUBLE), rtol=1e-10, atol=1e-12, msg=name)


def presence(seed: int) -> Tensor:
    present = torch.rand(B, 2, generator=generator(seed)) < 0.7
    present[0], present[1] = torch.tensor([True, False]), torch.tensor([False, True])
    present[~present.any(1)] = True
    return present


def neutral(rows: Tensor, present: Tensor) -> Tensor:
    """Rows (3, B, ..., C) in which the modalities that a sample lacks make no difference."""
    one = present.view(B, 2, *[1] * (rows.dim() - 2))
    joint = torch.where(one[:, 0] & one[:, 1], rows[2], torch.where(one[:, 0], rows[0], rows[1]))
    return torch.stack([rows[0], rows[1], joint])


def scaled(kappa: Tensor, present: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of rows (3, B, ..., C): what the responses are made of, times kappa, sample by sample."""
    gradient = torch.zeros(3, *upstream.shape, dtype=DOUBLE)
    for b, one in enumerate(present.tolist()):
        if all(one):
            for row, scale in enumerate((kappa @ WEIGHTS).tolist()):
                gradient[row, b] = scale * upstream[b]
        else:
            gradient[2, b] = kappa[one.index(True)] * upstream[b]
    return gradient


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


def own_error(response: Tensor, target: Tensor) -> Tensor:
    return (response - target).abs().nan_to_num().mean(-1)


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
        assert torch.equal(torch.stack(given), torch.einsum("ms,sbc->mbc", WEIGHTS, masked.detach()))
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


MASKED = numbers(3, B, 3)
LONG = torch.zeros(B, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"score": "hinge"}, ValueError, "`score` to be one of .*'absolute_error'.* but got 'hinge'"),
        ({"score": None}, TypeError, "`score` to be a name or a function"),
        ({"backend": "cpp"}, RuntimeError, "cannot serve `score`"),
        ({"target": LONG}, ValueError, r"shape \(7, 3\), a number an output, but got \(7,\)"),
        ({"target": torch.zeros(3, 7)}, ValueError, "a row for each of the 7 samples"),
        ({"target": torch.zeros(7, 3).to("meta")}, ValueError, "`target` to be on cpu"),
        ({"target": torch.zeros(7, 3, dtype=torch.complex64)}, TypeError, "real numbers"),
        ({"target": [0.0] * 7}, TypeError, "`target` to be a tensor"),
        ({"score": "ordinal", "target": LONG + 4}, ValueError, r"\[0, 4\).* but got 4 at row 0"),
        ({"score": "ordinal", "target": LONG.float()}, TypeError, "class indices"),
        ({"score": "soft_cross_entropy", "target": LONG}, TypeError, "probabilities of the classes"),
        ({"score": "soft_cross_entropy", "target": torch.ones(7, 3)}, ValueError, "sum to 1, but got 3.0 at"),
        (
            {"score": "soft_cross_entropy", "target": torch.tensor([[2.0, -1, 0]] * 7)},
            ValueError,
            r"none of them negative, but got -1.0 at \[0, 1\]",
        ),
        ({"score": "soft_cross_entropy", "target": torch.ones(7, 1)}, ValueError, r"shape \(7, 3\)"),
        ({"score": "binary_cross_entropy", "target": torch.full((7, 3), 2)}, ValueError, r"\[0, 1\].* but got 2 at"),
        ({"score": "binary_cross_entropy", "target": torch.full((7, 3), -1.0)}, ValueError, r"NaN where there is none"),
        ({"score": "cross_entropy", "target": torch.zeros(7, 1, dtype=torch.int64)}, ValueError, r"shape \(7,\)"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    for function, rows in ((agm.fused_modulate, (MASKED,)), (agm.fused_modulate_additive, (MASKED[:2], MASKED[:2, 0]))):
        state = agm.ModulationState(2)
        arguments = {"target": torch.zeros(7, 3), "score": "squared_error"} | changed
        with pytest.raises(error, match=message):
            function(*rows, arguments.pop("target"), state, **arguments)
        fresh = agm.ModulationState(2)
        assert torch.equal(state.values, fresh.values)
        assert torch.equal(state.counts, fresh.counts)


def test_a_wrong_class_among_tokens_is_pointed_at() -> None:
    target = torch.zeros(4, 6, dtype=torch.int64)
    target[1, 4] = 9
    with pytest.raises(ValueError, match=r"got 9 at row \[1, 4\]"):
        agm.fused_modulate(numbers(3, 4, 6, 5), target, agm.ModulationState(2))


def test_kernels_do_not_serve_sums_of_tokens() -> None:
    parts, target = numbers(2, 4, 6, 5), torch.zeros(4, 6, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"cannot serve `\(M, B, \.\.\., C\)`"):
        agm.fused_modulate_additive(parts, parts[:, 0], target, agm.ModulationState(2), backend="cpp")


def test_a_modulator_refuses_early() -> None:
    with pytest.raises(RuntimeError, match="cannot serve `score`"):
        agm.Modulator(("a", "b"), score="ordinal", backend="cpp")
    with pytest.raises(ValueError, match="'hinge'"):
        agm.Modulator(("a", "b"), score="hinge")


def test_what_is_right_is_reported_where_it_can_be_said() -> None:
    masked, target = numbers(3, B, 3).requires_grad_(), torch.zeros(B, 3)
    for score, is_said in (("binary_cross_entropy", True), ("squared_error", False)):
        modulator = agm.Modulator(("a", "b"), score=score)
        modulator(masked, target)
        accuracy = [row["accuracy"] for row in modulator.report().values()]
        assert [not math.isnan(one) for one in accuracy] == [is_said] * 2
        assert score in repr(modulator)


class Encoders(nn.Module):
    """Encoders of frames (B, 3, 4), a fusion, and a head of any shape."""

    def __init__(self, head: str, outputs: int, inner: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = inner
        self.encoders = nn.ModuleDict({"a": self.encoder(), "b": self.encoder()})
        self.head = nn.Linear(10, outputs) if head == "linear" else nn.Sequential(nn.Tanh(), nn.Linear(10, outputs))
        self.double()

    @staticmethod
    def encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Dropout(0.2))

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        joined = torch.cat([features["a"], features["b"]], -1)
        return self.head(joined) if self.inner else self.head(joined.mean(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fuse({"a": self.encoders["a"](a), "b": self.encoders["b"](b)})


class Whole(nn.Module):
    """The same without `encoders` and `fuse`."""

    def __init__(self, network: Encoders) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.network(a, b)


PATHS = {"a": "network.encoders.a", "b": "network.encoders.b"}


@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize(
    ("kind", "masked"),
    [("factorised", "exact"), ("factorised", "shared"), ("paths", "exact"), ("paths", "shared"), ("whole", "exact")],
)
@pytest.mark.parametrize(("name", "inner"), [("squared_error", False), ("cross_entropy", True), ("ordinal", True)])
def test_networks(name: str, inner: bool, kind: str, masked: Any, head: str) -> None:
    """Outputs of any shape, a single one too: the step is that of one pass of the whole network for each subset."""
    outputs = {"squared_error": 1, "cross_entropy": 4, "ordinal": 3}[name]
    network = Encoders(head, outputs, inner)
    model = agm.AGM(
        network if kind == "factorised" else Whole(network),
        ("a", "b"),
        alpha=0.5,
        score=name,
        masked=masked,
        encoders=PATHS if kind == "paths" else None,
    )
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    places = (B, 3) if inner else (B,)
    target = numbers(B, seed=2) if name == "squared_error" else classes(4)(places, 2)
    for _ in range(2):
        logits = model(**inputs, target=target)
        assert logits.shape == (*places, outputs)
        logits.square().mean().backward()
    assert model.modulator.state.step == 2
    assert (model.modulator.state.coefficients != 1).all()
    result = agm.verify(model, inputs, target)
    assert result.ok, result
    if masked == "exact":
        result = agm.verify(model, inputs, target, present=presence(0))
        assert result.ok, result


def test_a_linear_head_of_tokens_writes_no_subset_out() -> None:
    network = Encoders("linear", 4, inner=True)
    model = agm.AGM(network, ("a", "b"))
    model(a=numbers(B, 3, 4), b=numbers(B, 3, 4), target=torch.zeros(B, 3, dtype=torch.int64))
    assert "no subset is computed" in str(model.plan())


class Mixing(Encoders):
    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return super().fuse({name: x - x.mean(0) for name, x in features.items()})


def test_the_self_check_finds_what_is_wrong_with_another_score() -> None:
    model = agm.AGM(Mixing("deep", 3, inner=True), ("a", "b"), alpha=0.5, score="absolute_error")
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    result = agm.verify(model, inputs, numbers(B, 3, 3, seed=2))
    assert not result.ok
    assert "max_rows" in str(result)


def test_the_self_check_of_a_score_without_a_gradient() -> None:
    def wrong(response: Tensor, target: Tensor) -> Tensor:
        return (response.argmax(-1) != target).double() + 0.1

    model = agm.AGM(Encoders("deep", 3, inner=False), ("a", "b"), alpha=0.5, score=wrong)
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    result = agm.verify(model, inputs, torch.randint(3, (B,), generator=generator()))
    assert result.ok, result
    mixing = agm.AGM(Mixing("deep", 3, inner=False), ("a", "b"), alpha=0.5, score=wrong)
    result = agm.verify(mixing, inputs, torch.randint(3, (B,), generator=generator()))
    assert max(result.gradients.values()) > 0.01


def test_a_bad_batch_is_refused_before_the_network_runs() -> None:
    network = Encoders("deep", 3, inner=False)
    calls = []
    network.head.register_forward_hook(lambda *_: calls.append(1))
    model = agm.AGM(network, ("a", "b"), score="soft_cross_entropy")
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    for target, error in ((LONG, TypeError), (torch.ones(B - 1, 3), ValueError)):
        with pytest.raises(error, match="`target`"):
            model(**inputs, target=target)
    assert not calls
    model(**inputs, target=numbers(B, 3).softmax(-1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="sum to 1"):
        model(**inputs, target=torch.ones(B, 3))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)  # what needs the logits is seen later


def test_tokens_may_be_as_many_as_they_like() -> None:
    model = agm.AGM(Encoders("deep", 4, inner=True), ("a", "b"), alpha=0.5)
    for tokens in (3, 5, 1):
        inputs = {"a": numbers(B, tokens, 4), "b": numbers(B, tokens, 4, seed=1)}
        logits = model(**inputs, target=torch.zeros(B, tokens, dtype=torch.int64))
        assert logits.shape == (B, tokens, 4)
    assert copy.deepcopy(model).modulator.state.step == 3


def test_outputs_without_a_dimension_of_their_own() -> None:
    network = nn.Sequential(nn.Flatten(0))

    class Squeezed(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return network((a + b).mean((1, 2)))

    model = agm.AGM(Squeezed(), ("a", "b"), score="squared_error")
    assert model(a=numbers(B, 3, 4), b=numbers(B, 3, 4), target=numbers(B)).shape == (B,)


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "multi_label.py"
    assert len(path.read_text().splitlines()) <= 40
    with torch.random.fork_rng():
        state = runpy.run_path(str(path))["model"].modulator.state
    epochs = capsys.readouterr().out.splitlines()
    assert len(epochs) == 5
    assert state.step == 40
    assert state.mono_correct.sum() > 0
    losses = [float(line.split("loss ")[1].split(";")[0]) for line in epochs]
    assert losses[-1] < losses[0] / 2


def test_masked_outputs_of_another_shape_are_refused() -> None:
    class Trimmed(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a + b)[:, : 3 if self.training else 2]

    with pytest.raises(ValueError, match=r"with 14 rows, or of shape \(batch, 3, 4\), but got \(14, 2, 4\)"):
        agm.masked_logits(Trimmed(), {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4)})
