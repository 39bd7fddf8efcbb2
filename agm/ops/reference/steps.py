"""One step of the scores: mono-modal responses, totals over the batch (which may be summed), coefficients."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of `values`, and the entries of `counts` behind its first M.
RUNNING_SCORES, SCORES, RATIOS, REFERENCE_RATIOS, COEFFICIENTS = range(5)
JOINT_CORRECT, SAMPLES, STEP, SKIPPED = range(4)


def sample_scores(response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each response, at most -log(floor): (M, B, C), (B,) -> (M, B), and the rows in use (B,).

    There may be more dimensions behind the batch: (M, B, ..., C), (B, ...) -> (M, B, ...), (B, ...).
    Ignored rows are 0. A class index outside [0, C) gives NaN, which makes the step a skipped one.
    """
    used = target != ignore_index
    index = target.clamp(0, response.shape[-1] - 1)
    log_probability = F.log_softmax(response, dim=-1)
    picked = log_probability.gather(-1, index.expand(response.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    cost = -picked
    if floor > 0:
        cost = cost.clamp(max=-math.log(floor))
    cost = cost.masked_fill(used & (index != target), torch.nan)
    return cost.masked_fill(~used, 0.0), used


def discrepancy_ratios(scores: Tensor) -> Tensor:
    """exp(sum over j != m of (s_j - s_m) / (M - 1)): (M,) -> (M,); above 1 for a modality that runs ahead."""
    return ((scores.sum() - scores * len(scores)) / (len(scores) - 1)).exp()


def step_totals(
    response: Tensor,  # (M, B, ..., C)
    joint: Tensor,  # (B, ..., C)
    target: Tensor,  # (B, ...) int64
    present: Tensor | None,  # (B, M) bool
    floor: float,
    ignore_index: int,
) -> Tensor:
    """`batch_totals` of cross-entropies."""
    cost, used = sample_scores(response, target, floor, ignore_index)
    predicted = torch.cat([response.argmax(-1), joint.argmax(-1).unsqueeze(0)])
    return batch_totals(cost, predicted.eq(target), used, present)


def batch_totals(
    cost: Tensor,  # (M, B, ...), 0 where nothing is in use
    hits: Tensor,  # (M + 1, B, ...) bool, the joint ones last
    used: Tensor,  # (B, ...) bool
    present: Tensor | None,  # (B, M) bool
) -> Tensor:
    """What one batch adds to a step, (2 M + 2,) float64: summed scores, mono-modal hits, joint hits, samples in use.

    With `present` a modality counts in the samples that have it, and their numbers follow: (3 M + 2,).
    """
    hits = hits & used
    if present is None:
        sums = cost.double().flatten(1).sum(1)
        return torch.cat([sums, hits.flatten(1).sum(1).double(), used.sum().double().view(1)])
    counted = present.T.reshape(present.shape[1], *used.shape[:1], *[1] * (used.dim() - 1)) & used
    hits = torch.cat([hits[:-1] & counted, hits[-1:]])
    sums = torch.where(counted, cost, 0.0).double().flatten(1).sum(1)
    numbers = (hits.flatten(1).sum(1), used.sum().view(1), counted.flatten(1).sum(1))
    return torch.cat([sums, *(number.double() for number in numbers)])


def finish_step(
    totals: Tensor,  # (2 M + 2,) or (3 M + 2,) float64
    values: Tensor,  # (5, M) float64
    counts: Tensor,  # (M + 4,) int64
    alpha: float,
    max_gap: float,
    update: bool,
    of_mean: Callable[[Tensor], Tensor] = lambda means: means,
    seen: Tensor | None = None,  # (M + 1,) int64
) -> Tensor:
    """Coefficients (M,) float64 of a step from its totals; `values` and `counts` are written if `update`.

    So is `seen`, where modalities are counted one by one: the samples of each, and of which step they are, skipped ones
    counted with the others.

    The scores are the means over the samples, or what `of_mean` makes of these, elementwise.

    If a score or a coefficient is not finite, kappa is 1 and of the running quantities only the number of skipped
    steps changes.
    """
    modalities = values.shape[1]
    sums, hits, samples = totals[:modalities], totals[modalities : 2 * modalities + 1], totals[2 * modalities + 1]
    running, step = values[RUNNING_SCORES], counts[modalities + STEP] + 1
    t = step.double()
    if len(totals) == 2 * modalities + 2:
        scores = of_mean(sums / samples)
        ratios = discrepancy_ratios(scores)
        reference_ratios = discrepancy_ratios(running)
        moved = running * ((t - 1) / t) + scores / t
        told = scores
    else:
        numbers = totals[2 * modalities + 2 :]
        scores, ratios, reference_ratios, moved = _among_seen(sums, numbers, running, t, of_mean)
        told = torch.where(numbers > 0, scores, torch.nan)  # what no sample has, has no score
    coefficients = (alpha * (reference_ratios - ratios).clamp(max=max_gap)).exp()
    # A coefficient is applied in float32, so a finite one is finite there.
    finite = scores.isfinite().all() & (coefficients <= torch.finfo(torch.float32).max).all() & (samples > 0)
    coefficients = torch.where(finite, coefficients, 1.0)

    if update:
        running = torch.where(finite, moved, running)
        skipped = counts[modalities + SKIPPED] + (~finite)
        step = step - (~finite).long()
        counts.copy_(torch.cat([hits.long(), torch.stack([samples.long(), step, skipped])]))
        values.copy_(torch.stack([running, told, ratios, reference_ratios, coefficients]))
        if seen is not None and len(totals) > 2 * modalities + 2:
            seen.copy_(torch.cat([totals[2 * modalities + 2 :].long(), (step + skipped).view(1)]))
    return coefficients


def _among_seen(
    sums: Tensor, samples: Tensor, running: Tensor, t: Tensor, of_mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, ratios, reference ratios and running scores where a modality may be in none of the samples.

    Such a modality takes no part in the step: its score is taken to be its running one, which stays, and its ratios
    are 1. A modality that is met for the first time has no history; its first score stands for it.
    """
    seen = samples > 0
    scores = torch.where(seen, of_mean(sums / samples.clamp(min=1)), running)
    met = running != 0  # a mean of costs, or of their logarithms, that is exactly 0 is one that has not begun
    history = torch.where(seen & ~met & met.any(), scores, running)
    moved = torch.where(met, running * ((t - 1) / t) + scores / t, scores)

    def ratios(of: Tensor) -> Tensor:
        total = torch.where(seen, of, 0.0).sum()
        among = seen.sum()
        return torch.where(seen, ((total - among * of) / (among - 1).clamp(min=1)).exp(), 1.0)

    return scores, ratios(scores), ratios(history), torch.where(seen, moved, running)


def make_step(
    response: Tensor,  # (M, B, C)
    joint: Tensor,  # (B, C)
    target: Tensor,  # (B,) int64
    values: Tensor,  # (5, M) float64
    counts: Tensor,  # (M + 4,) int64
    alpha: float,
    max_gap: float,
    floor: float,
    ignore_index: int,
    update: bool,
) -> Tensor:
    """What `modulate` does with the responses, wherever they come from; returns the coefficients (M,) float64."""
    totals = step_totals(response, joint, target, None, floor, ignore_index)
    return finish_step(totals, values, counts, alpha, max_gap, update)
