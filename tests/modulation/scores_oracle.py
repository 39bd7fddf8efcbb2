"""Targets of other scores than one class a sample, and what a response costs by the formula, in Python numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

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


def own_error(response: Tensor, target: Tensor) -> Tensor:
    return (response - target).abs().nan_to_num().mean(-1)


MASKED = numbers(3, B, 3)
LONG = torch.zeros(B, dtype=torch.int64)
