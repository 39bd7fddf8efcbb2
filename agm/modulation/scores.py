"""What a mono-modal response is scored by: the cost of each sample, whose mean over the batch is the modality's score.

The modulation compares modalities by `exp` of the differences between their scores (Li et al., "Boosting Multi-modal
Model Performance with Adaptive Gradient Modulation", ICCV 2023, eq. 6-8). Of cross-entropies, which are in nats, that
is a ratio of probabilities: it has no unit, and a bound. A score for another task must be a cost (lower is better) of
which the same can be said. The names that `score=` takes:

`"cross_entropy"`
    Class indices (B, ...) for logits (B, ..., C): a class a sample, token or segment. A sample costs at most
    -log(floor). This is what the paper uses, and what the kernels serve.
`"soft_cross_entropy"`
    Probabilities (B, ..., C): soft labels, mixup, smoothed labels. `-sum_c q_c log p_c`, with log p_c at least
    log(floor): of one class alone it is `"cross_entropy"`. The entropy of the labels is in every modality's score and
    leaves the differences alone. A hit is the most probable class.
`"binary_cross_entropy"`
    Labels (B, ..., C) in [0, 1], any number of them true, or (B, ...) for a single logit. The mean over the labels that
    are known, each at most -log(floor), and not their sum: `exp` of a difference between sums over 80 labels would be
    0 or infinite, and what `alpha` does would depend on how many there are. A hit has every known label right.
`"ordinal"`
    Ranks (B, ...) in [0, K] for K logits (B, ..., K), of which number k is that of `rank > k` (Cao, Mirjalili and
    Raschka, "Rank consistent ordinal regression for neural networks with application to age estimation", Pattern
    Recognition Letters 2020). The mean of the binary cross-entropies of these K questions, so that to be far off costs
    more than to be near. A hit is the right number of positive logits. For a network that has a logit for each rank
    take `"cross_entropy"`.
`"squared_error"`, `"absolute_error"`
    Numbers (B, ..., K), or (B, ...) for a single output. The score is the *logarithm* of the batch's root mean squared
    error, or of its mean absolute error: up to a constant the negative log-likelihood, in nats, under normal or Laplace
    noise of the width that fits the batch best. The discrepancy ratio of two modalities is then the ratio of their
    errors. The error itself in `exp` would make it depend on the target's unit, and a single outlier, whose square has
    no bound, would rule it; here an outlier in the target is in all modalities' errors and draws their ratio to 1. No
    floor applies. Errors of several outputs are averaged before the logarithm, so standardise these. There are no hits,
    and a batch without any error, whose logarithm is infinite, is a skipped step.

What has no target counts in nothing: `ignore_index` in a target of integers, NaN in one of floating numbers. Of several
labels or outputs the known ones count, and a sample counts if it has one.

Class weights and label smoothing belong to the loss, whose gradient is modulated whatever it is; the scores are plain.
With weights a score would move with the classes that a batch happens to hold; and smoothing, which keeps a network from
being too sure, would call a response worse for being right and sure. Smoothed scores are `"soft_cross_entropy"` of
smoothed labels, and weighted ones a function.

A function `score(response, target)` of one's own takes the response of one modality, (B, ..., C) float32 or float64,
and the target, a tensor with a row a sample, and returns a cost for every sample, token or segment: (B,), (B, ...), or
all of these in a row. It runs without gradients, once for every modality. The mean of its costs is the score, so let
them be in nats, or something like it, and bounded: `exp` of their differences is taken, and a cost that is not finite
makes the step a skipped one. It is given the ignored parts of the target too, and what it returns for these is not
looked at: a cost counts if any part of the target that belongs to it does.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from agm.ops import _checks, reference

__all__ = ["Score", "ScoreName", "find_score"]

ScoreName = str | Callable[[Tensor, Tensor], Tensor]
"""The name of a score, or a function of a response and the target."""


class Score:
    """How responses (M, B, ..., C) are scored.

    Attributes:
        has_hits: whether it can be said that a response is right.
        served: whether kernels compute it.
    """

    has_hits = True
    served = False

    def check(self, target: Tensor, shape: Sequence[int], device: torch.device, ignore_index: int) -> None:
        """That the target fits logits of `shape` (B, ..., C).

        Raises:
            TypeError, ValueError: it does not.
        """
        raise NotImplementedError

    def check_batch(self, target: Tensor, batch: int, device: torch.device) -> None:
        """What of `check` can be said before the logits are known.

        Raises:
            TypeError, ValueError: as there.
        """
        _check_rows(target, batch, device)

    def costs(self, response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
        """(M, B, ...), 0 where there is no target, and where there is one (B, ...).

        What should not be among targets, where it could not be checked, costs NaN.
        """
        raise NotImplementedError

    def hits(self, response: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """Which responses are right: (M, B, ..., C) -> (M, B, ...) bool."""
        raise NotImplementedError

    def of_mean(self, means: Tensor) -> Tensor:
        """The scores (M,) from the mean costs (M,)."""
        return means

    def totals(
        self,
        response: Tensor,  # (M, B, ..., C)
        joint: Tensor,  # (B, ..., C)
        target: Tensor,
        present: Tensor | None,  # (B, M) bool
        floor: float,
        ignore_index: int,
    ) -> Tensor:
        """What one batch adds to a step, as `agm.ops.reference.batch_totals` has it."""
        cost, used = self.costs(response, target, floor, ignore_index)
        if self.has_hits:
            hits = torch.cat([self.hits(logits, target, ignore_index) for logits in (response, joint.unsqueeze(0))])
        else:
            hits = used.new_zeros(len(cost) + 1, *used.shape)
        return reference.batch_totals(cost, hits, used, present)

    def loss(self, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """Something of logits (B, ..., C) to differentiate: the mean cost, unbounded."""
        cost, used = self.costs(logits.unsqueeze(0), target, 0.0, ignore_index)
        return cost.sum() / used.sum()


class _Indices(Score):
    """Of classes or ranks.

    Attributes:
        more: how many of them there are beyond the logits.
    """

    more = 0

    def check(self, target: Tensor, shape: Sequence[int], device: torch.device, ignore_index: int) -> None:
        _checks.check_target(target, shape[:-1], device, shape[-1])
        _checks.check_classes(target, shape[-1] + self.more, ignore_index)

    def check_batch(self, target: Tensor, batch: int, device: torch.device) -> None:
        rest = target.shape[1:] if isinstance(target, Tensor) else ()
        _checks.check_target(target, (batch, *rest), device)


class _CrossEntropy(_Indices):
    served = True

    def costs(self, response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
        return reference.sample_scores(response, target.long(), floor, ignore_index)

    def hits(self, response: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return response.argmax(-1) == target


class _SoftCrossEntropy(Score):
    def check(self, target: Tensor, shape: Sequence[int], device: torch.device, ignore_index: int) -> None:
        self.check_batch(target, shape[0], device)
        _check_shape(target, tuple(shape), "a probability a class")
        known = _known(target, ignore_index)
        _check_values(target, known, target >= 0, "probabilities, none of them negative")
        total = target.sum(-1, dtype=torch.float64)
        _check_values(total, known.all(-1), (total - 1).abs() < 1e-2, "probabilities that sum to 1")

    def check_batch(self, target: Tensor, batch: int, device: torch.device) -> None:
        super().check_batch(target, batch, device)
        if not target.is_floating_point():
            raise TypeError(
                f"Expected argument `target` to hold probabilities of the classes, but got {target.dtype}. For class "
                'indices use score="cross_entropy", or one_hot(target, classes).float().'
            )

    def costs(self, response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
        used = _known(target, ignore_index).all(-1)
        probability = target.to(response.dtype).masked_fill(~used.unsqueeze(-1), 0.0)
        cost = -(probability * _bounded(F.log_softmax(response, -1), floor)).sum(-1)
        return cost.masked_fill(~used, 0.0), used

    def hits(self, response: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return response.argmax(-1) == target.argmax(-1)


class _BinaryCrossEntropy(Score):
    def check(self, target: Tensor, shape: Sequence[int], device: torch.device, ignore_index: int) -> None:
        _check_rows(target, shape[0], device)
        _check_outputs(target, shape, "a number in [0, 1] a label")
        known = _known(target, ignore_index)
        _check_values(target, known, (target >= 0) & (target <= 1), f"labels in [0, 1] ({_marks(target)})")

    def costs(self, response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
        target = _outputs(target, response)
        known = _known(target, ignore_index)
        label = target.to(response.dtype)
        label = label.masked_fill((label < 0) | (label > 1), torch.nan).masked_fill(~known, 0.0)
        return _mean_known(_binary_costs(response, label, floor), known)

    def hits(self, response: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        target = _outputs(target, response)
        return ((response > 0) == (target >= 0.5)).logical_or(~_known(target, ignore_index)).all(-1)


class _Ordinal(_Indices):
    more = 1

    def costs(self, response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
        target = target.long()
        used = target != ignore_index
        wrong = (target < 0) | (target > response.shape[-1])
        above = target.unsqueeze(-1) > torch.arange(response.shape[-1], device=target.device)
        cost = _binary_costs(response, above.to(response.dtype), floor).mean(-1)
        return cost.masked_fill(wrong, torch.nan).masked_fill(~used, 0.0), used

    def hits(self, response: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return (response > 0).sum(-1) == target


class _Error(Score):
    """The error to a power, averaged over what is known of a sample's outputs."""

    has_hits = False

    def __init__(self, power: int) -> None:
        self.power = power

    def check(self, target: Tensor, shape: Sequence[int], device: torch.device, ignore_index: int) -> None:
        _check_rows(target, shape[0], device)
        _check_outputs(target, shape, "a number an output")

    def costs(self, response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
        target = _outputs(target, response)
        known = _known(target, ignore_index)
        error = (response - target.to(response.dtype).masked_fill(~known, 0.0)).abs()
        return _mean_known(error**self.power, known)

    def of_mean(self, means: Tensor) -> Tensor:
        return means.log() / self.power


class _Own(Score):
    """A user's function."""

    has_hits = False

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def check(self, target: Tensor, shape: Sequence[int], device: torch.device, ignore_index: int) -> None:
        _check_rows(target, shape[0], device)

    def costs(self, response: Tensor, target: Tensor, floor: float, ignore_index: int) -> tuple[Tensor, Tensor]:
        cost = torch.stack([self._cost(one, target) for one in response])
        known = _known(target, ignore_index)
        alike = 0  # leading dimensions that target and costs share
        while alike < min(target.dim(), cost.dim() - 1) and target.shape[alike] == cost.shape[alike + 1]:
            alike += 1
        used = known.flatten(alike).any(-1) if target.dim() > alike else known
        used = used.reshape(*used.shape, *[1] * (cost.dim() - 1 - alike)).expand(cost.shape[1:])
        return cost.masked_fill(~used, 0.0), used

    def _cost(self, response: Tensor, target: Tensor) -> Tensor:
        cost = self.function(response, target)
        if not isinstance(cost, Tensor) or not cost.is_floating_point():
            got = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
            raise TypeError(f"Expected the function `score` to return a tensor of floating numbers, but got {got}.")
        places = response.shape[:-1]
        if cost.shape == response.shape[: cost.dim()] and cost.dim():
            return cost
        if cost.shape == (places.numel(),):
            return cost.reshape(places)
        raise ValueError(
            f"Expected the function `score` to return a cost for each of the {response.shape[0]} samples, of shape "
            f"({response.shape[0]},) or {tuple(places)}, but got {tuple(cost.shape)}. Leave the mean over samples out "
            '(reduction="none").'
        )

    def loss(self, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return logits.square().mean()  # a function need have no gradient, nor a finite one where nothing is known


_SCORES: dict[str, Score] = {
    "cross_entropy": _CrossEntropy(),
    "soft_cross_entropy": _SoftCrossEntropy(),
    "binary_cross_entropy": _BinaryCrossEntropy(),
    "ordinal": _Ordinal(),
    "squared_error": _Error(2),
    "absolute_error": _Error(1),
}


def find_score(score: ScoreName) -> Score:
    """The score of a name, or of a function.

    Raises:
        ValueError: there is none of that name.
        TypeError: it is neither a name nor callable.
    """
    if isinstance(score, str):
        if score not in _SCORES:
            raise ValueError(
                f"Expected argument `score` to be one of {sorted(_SCORES)} or a function, but got {score!r}."
            )
        return _SCORES[score]
    if not callable(score):
        raise TypeError(
            f"Expected argument `score` to be a name or a function of a response and the target, but got {score!r}."
        )
    return _Own(score)


def _known(target: Tensor, ignore_index: int) -> Tensor:
    # A narrow dtype would wrap the number that it is compared with.
    return ~target.isnan() if target.is_floating_point() else target.long() != ignore_index


def _marks(target: Tensor) -> str:
    return "NaN where there is none" if target.is_floating_point() else "ignore_index where there is none"


def _outputs(target: Tensor, response: Tensor) -> Tensor:
    """(B, ..., C) also where there is one output and the target leaves its dimension out."""
    return target.unsqueeze(-1) if target.dim() == response.dim() - 2 else target


def _bounded(log_probability: Tensor, floor: float) -> Tensor:
    return log_probability.clamp(min=math.log(floor)) if floor > 0 else log_probability


def _binary_costs(response: Tensor, label: Tensor, floor: float) -> Tensor:
    """Binary cross-entropies of labels in [0, 1].

    An infinite response has none, as it has no softmax: where it comes from an overflow the step is to be skipped.
    """
    yes, no = (_bounded(F.logsigmoid(logit), floor) for logit in (response, -response))
    return -(label * yes + (1 - label) * no).masked_fill(response.isinf(), torch.nan)


def _mean_known(cost: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the last dimension of what is known, 0 where nothing is; and where something is."""
    return cost.masked_fill(~known, 0.0).sum(-1) / known.sum(-1).clamp(min=1), known.any(-1)


def _check_rows(target: Tensor, batch: int, device: torch.device) -> None:
    """A target of any kind that has a row a sample."""
    _checks.check_tensor("target", target, device)
    if target.is_complex():
        raise TypeError(f"Expected argument `target` to hold real numbers, but got {target.dtype}.")
    if target.shape[:1] != (batch,):
        raise ValueError(
            f"Expected argument `target` to have a row for each of the {batch} samples, but got {tuple(target.shape)}."
        )


def _check_shape(target: Tensor, shape: tuple[int, ...], what: str) -> None:
    if target.shape != shape:
        raise ValueError(f"Expected argument `target` to have shape {shape}, {what}, but got {tuple(target.shape)}.")


def _check_outputs(target: Tensor, shape: Sequence[int], what: str) -> None:
    if shape[-1] != 1 or target.dim() != len(shape) - 1:
        _check_shape(target, tuple(shape), what)
    else:
        _check_shape(target, tuple(shape[:-1]), what)


def _check_values(target: Tensor, known: Tensor, right: Tensor, what: str) -> None:
    if not _checks.can_be_read(target):
        return
    wrong = known & ~right
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"Expected argument `target` to hold {what}, but got {target[place].item()} at {list(place)}.")
