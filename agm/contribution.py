"""What each modality contributes to a network's accuracy, over a dataset and sample by sample."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agm._inputs.absent import Absent
from agm._module_state.eval_mode import evaluation
from agm._passes.masked_passes import MaskedPasses
from agm._passes.options import MaskedOptions
from agm.engine import AGM
from agm.modulation.checks import check_presence
from agm.modulation.unfused import restricted
from agm.ops._checks import check_classes, check_ignore_index, check_masked_logits, check_modalities, check_target
from agm.ops.reference import responses
from agm.shapley.weights import num_modalities, weights_on

__all__ = ["ContributionMeter", "Contributions", "contributions", "modality_values"]

Empty = float | Literal["majority", "chance"]


@dataclass(frozen=True, eq=False)
class Contributions:
    """How a network's accuracy comes about; `print` it. Accuracies are shares from 0 to 1.

    v(S) is the accuracy of the network with only the modalities of S present, v(all) its joint accuracy. The empty
    subset is worth `empty`, for a network that sees nothing can do no better than name one class every time.

    Where samples lack modalities, a subset is worth to a sample what those of its modalities are worth that it has, and
    `empty` if there are none; so a modality that a sample lacks contributes nothing to it.

    Attributes:
        modalities: their names, in bit order.
        samples: how many were counted; ignored ones are not.
        accuracy: v(all).
        empty: v of the empty subset.
        responses: modality -> accuracy of its mono-modal response, the Shapley value of the logits, on the samples that
            have the modality; NaN if none does.
        alone: modality -> v({m}), accuracy with all others absent, on the samples that have it.
        contributions: modality -> Shapley value of v: the accuracy that it adds, on average over all orders in which
            modalities can be added to none. They sum to accuracy - empty.
        cooperation: (accuracy - empty) - sum over m of (v({m}) - empty), all of all samples. Above 0 the modalities
            achieve together what they cannot apart; below 0 they know the same. A modality that alone does worse than
            `empty` (a network may do so without the inputs that it needs) raises it as well: read it beside `alone`.
        values: modality -> mean of its `modality_values` over the samples that have it; where all have all they sum to
            M times the accuracy.
        subsets: v of every non-empty subset, entry i of the subset with bitmask i + 1.
        sample_values: (N, M) float64, `modality_values` of every sample in the order in which the samples came, NaN
            for ignored ones and for modalities that a sample lacks; None where they were not kept.
    """

    modalities: tuple[str, ...]
    samples: int
    accuracy: float
    empty: float
    responses: Mapping[str, float]
    alone: Mapping[str, float]
    contributions: Mapping[str, float]
    cooperation: float
    values: Mapping[str, float]
    subsets: tuple[float, ...] = field(repr=False)
    sample_values: Tensor | None = field(default=None, repr=False)

    def accuracy_of(self, *present: str) -> float:
        """v(S): accuracy with only these modalities present; `empty` for none.

        Raises:
            ValueError: a name that is no modality.
        """
        if unknown := [name for name in present if name not in self.modalities]:
            raise ValueError(f"Expected names of the modalities {self.modalities}, but got {unknown}.")
        mask = sum(1 << m for m, name in enumerate(self.modalities) if name in present)
        return self.subsets[mask - 1] if mask else self.empty

    def __str__(self) -> str:
        width = max(len("modality"), *map(len, self.modalities))
        rows = [f"  {'modality':<{width}}  response   alone  contribution  value"]
        for name in self.modalities:
            shares = f"{100 * self.responses[name]:>8.1f}  {100 * self.alone[name]:>6.1f}"
            rows.append(
                f"  {name:<{width}}  {shares}  {100 * self.contributions[name]:>+12.1f}  {self.values[name]:>+5.2f}"
            )
        return "\n".join(
            [
                f"Of {self.samples} samples {100 * self.accuracy:.1f} % are right with all modalities, "
                f"{100 * self.empty:.1f} % with none.",
                *rows,
                f"  cooperation {100 * self.cooperation:+.1f}",
            ]
        )


class ContributionMeter:
    """Counts `Contributions` batch by batch, on the device of the logits; only `report` reads from it.

    Args:
        modalities: their names, in bit order.
        ignore_index: samples with this target are not counted.
        sample_values: keep the values of every sample, 8 M bytes each on the device.

    Raises:
        ValueError: names that are fewer than two or not distinct.
        TypeError: `ignore_index` is not an integer.
    """

    def __init__(self, modalities: Sequence[str], *, ignore_index: int = -100, sample_values: bool = True) -> None:
        self.modalities = check_modalities(modalities)
        check_ignore_index(ignore_index)
        self.ignore_index = ignore_index
        self._keeps = sample_values
        self._counts: _Counts | None = None
        self._values: list[Tensor] = []

    @torch.no_grad()
    def update(self, masked_logits: Tensor, target: Tensor, present: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            masked_logits: (2**M - 1, B, C), as `agm.masked_logits` gives them in eval mode.
            target: (B,) class indices.
            present: (B, M) bool, which samples have which modalities, as `agm.masked_logits` was told; None: all.

        Raises:
            TypeError: logits that are not floating, a target that does not hold class indices.
            ValueError: a shape or a device that does not fit, another number of classes than before, or a class index
                outside [0, C), on a CPU at once and elsewhere in `report`.
        """
        check_masked_logits(masked_logits, len(self.modalities))
        _, batch, classes = masked_logits.shape
        check_target(target, (batch,), masked_logits.device)
        check_classes(target, classes, self.ignore_index)
        target = target.long()
        if self._counts is not None and (self._counts.classes, self._counts.device) != (classes, target.device):
            raise ValueError(
                f"Expected argument `masked_logits` to have {self._counts.classes} classes on {self._counts.device} as "
                f"in the batches before, but got {classes} on {target.device}."
            )
        used = target != self.ignore_index
        if present is None:
            has = used.unsqueeze(1).expand(batch, len(self.modalities))
        else:
            check_presence("present", present, batch, len(self.modalities), target.device)
            masked_logits = restricted(masked_logits, present)
            has = present & used.unsqueeze(1)
        none = used & ~_shared(has).bool()  # (2**M - 1, B): to which samples a subset is an empty one
        hits = _correct(masked_logits, target) & used & ~none
        values = _values(hits, has)
        of_responses = _correct(responses(masked_logits), target) & has.T
        of_classes = (target.unsqueeze(1) == torch.arange(classes, device=target.device)) & used.unsqueeze(1)
        found = (hits.sum(1), none.sum(1), of_responses.sum(1), has.sum(0), values.nansum(0), of_classes.sum(0))
        counts = _Counts(*found, used.sum())
        self._counts = counts if self._counts is None else counts + self._counts
        if self._keeps:
            self._values.append(values)

    def report(self, *, empty: Empty = "majority") -> Contributions:
        """The figures of all batches so far.

        Args:
            empty: accuracy that the empty subset is worth: "majority", the share of the most frequent class among the
                samples, which is what naming one class can achieve at best; "chance", one over the number of classes;
                or a number from 0 to 1.

        Raises:
            ValueError: no sample was counted, a class index was out of range, or `empty` is none of these.
        """
        _check_empty(empty)
        if self._counts is None or int(self._counts.samples) == 0:
            raise ValueError("Expected one sample or more that is not ignored, but got none. Check the batches.")
        counts = _Counts(*(part.cpu() for part in self._counts.parts))
        samples, of_classes = int(counts.samples), counts.of_classes
        if int(of_classes.sum()) != samples:
            raise ValueError(
                f"Expected every target to be in [0, {len(of_classes)}) or ignore_index={self.ignore_index}, "
                f"but got {samples - int(of_classes.sum())} others. Correct the labels."
            )
        if empty == "majority":
            nothing = int(of_classes.max()) / samples
        elif empty == "chance":
            nothing = 1 / len(of_classes)
        else:
            nothing = float(empty)
        count = len(self.modalities)
        subsets = (counts.hits.double() + nothing * counts.none.double()) / samples
        weights = weights_on(subsets.device, count)
        # Each row of weights sums to 1/M: taking v(empty) from every subset takes 1/M of it from the value.
        contributed = (weights @ (subsets - nothing)).tolist()
        single = [(1 << m) - 1 for m in range(count)]
        accuracy = float(subsets[-1])
        return Contributions(
            modalities=self.modalities,
            samples=samples,
            accuracy=accuracy,
            empty=nothing,
            responses=self._named((counts.of_responses.double() / counts.having).tolist()),
            alone=self._named((counts.hits[single].double() / counts.having).tolist()),
            contributions=self._named(contributed),
            cooperation=accuracy - nothing - math.fsum(float(subsets[place]) - nothing for place in single),
            values=self._named((counts.values / counts.having).tolist()),
            subsets=tuple(subsets.tolist()),
            sample_values=torch.cat(self._values).cpu() if self._keeps else None,
        )

    def _named(self, figures: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.modalities, figures, strict=True))


@dataclass(frozen=True)
class _Counts:
    """Sums over samples: over those that count, and have the modality where there is one of each."""

    hits: Tensor  # (2**M - 1,)
    none: Tensor  # (2**M - 1,), samples that have no modality of the subset
    of_responses: Tensor  # (M,)
    having: Tensor  # (M,)
    values: Tensor  # (M,) float64
    of_classes: Tensor  # (C,)
    samples: Tensor  # ()

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, spec.name) for spec in fields(self))

    @property
    def classes(self) -> int:
        return len(self.of_classes)

    @property
    def device(self) -> torch.device:
        return self.of_classes.device

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(*(left + right for left, right in zip(self.parts, other.parts, strict=True)))


def modality_values(
    masked_logits: Tensor, target: Tensor, *, present: Tensor | None = None, ignore_index: int = -100
) -> Tensor:
    """What each modality is worth for each sample (sample-level modality valuation, Wei et al., CVPR 2024).

    The Shapley value of v(S) = |S| if the logits of S put the sample's class first, else 0; the empty subset is worth
    0. With two modalities it is one of -0.5, 0, 0.5, 1 and 1.5. The values of a sample sum to M if the joint logits
    are right about it, and to 0 if they are not. Where a sample lacks modalities, |S| counts those that it has.

    Args:
        masked_logits: (2**M - 1, B, C), row i of the subset with bitmask i + 1; logits that hold NaN are wrong.
        target: (B,) class indices.
        present: (B, M) bool, which samples have which modalities, as `agm.masked_logits` was told; None: all. What a
            sample lacks has NaN.
        ignore_index: samples with this target have NaN.

    Returns:
        (B, M) float64.

    Raises:
        TypeError: logits that are not floating, a target that does not hold class indices.
        ValueError: a shape or a device that does not fit, or, on a CPU, a class index outside [0, C).
    """
    check_ignore_index(ignore_index)
    check_masked_logits(masked_logits, num_modalities(len(masked_logits)))
    check_target(target, masked_logits.shape[1:2], masked_logits.device)
    check_classes(target, masked_logits.shape[2], ignore_index)
    has = torch.ones(len(target), num_modalities(len(masked_logits)), dtype=torch.bool, device=target.device)
    if present is not None:
        check_presence("present", present, has.shape[0], has.shape[1], target.device)
        has = present
    target = target.long()
    return _values(_correct(masked_logits.detach(), target), has & (target != ignore_index).unsqueeze(1))


def contributions(
    network: nn.Module,
    batches: Iterable[tuple[Mapping[str, Any], Tensor]],
    modalities: Sequence[str] | None = None,
    *,
    present: Tensor | None = None,
    empty: Empty = "majority",
    ignore_index: int = -100,
    sample_values: bool = True,
    absent: Mapping[str, Absent] | None = None,
    encoders: Mapping[str, str] | None = None,
    max_rows: int | None = None,
) -> Contributions:
    """Measure what each modality contributes to the accuracy of a network in eval mode.

    The contributions are the Shapley values of the accuracy and the cooperation is what the joint accuracy has beyond
    the sum of what each modality achieves alone, both as in SHAPE (Hu, Li and Zhou, IJCAI 2022), with absent inputs as
    `absent` says. Each batch takes one batched masked pass, as in `agm.masked_logits`, and nothing is read from the
    device before the last one. The modes of the network are as before afterwards, and its parameters and buffers are
    not written to.

    Args:
        network: as `agm.masked_logits` takes it, or an `agm.AGM`, whose modalities, absent inputs and encoders are then
            those of the report.
        batches: pairs of inputs and target (B,): the inputs map the modalities, and other arguments of forward, to what
            they are in the batch, on the network's device. Of any size; `[(inputs, target)]` for one. A third entry is
            the batch's part of `present`.
        modalities: their names; may be left out for an `agm.AGM` and for a network with `encoders` and `fuse`.
        present: (N, M) bool, which samples have which modalities, in the order in which they come; None: all have all,
            or the batches say it.
        empty: what the empty subset is worth: "majority", "chance" or a number, as in `ContributionMeter.report`.
        ignore_index: samples with this target are not counted.
        sample_values: keep `modality_values` of every sample.
        absent, encoders, max_rows: as in `agm.masked_logits`.

    Raises:
        ValueError: no sample, another setting than these, `modalities`, `absent`, `encoders` or `max_rows` beside an
            `agm.AGM`, and as `agm.masked_logits`.
        TypeError: a batch that is no such pair.
    """
    _check_empty(empty)
    passes = _passes(network, modalities, absent=absent, encoders=encoders, max_rows=max_rows)
    meter = ContributionMeter(passes.modalities, ignore_index=ignore_index, sample_values=sample_values)
    done = 0
    for number, batch in enumerate(batches):
        inputs, target, own = _parts(batch, number)
        if present is not None:
            own = present[done : done + len(target)].to(target.device)
        done += len(target)
        # Entered a batch: what makes the batches may use the network, and finds it in its own mode.
        with torch.no_grad(), evaluation(passes.network):
            meter.update(passes.stacked(passes.binding.split((), inputs), own), target, own)
    if present is not None and len(present) != done:
        raise ValueError(
            f"Expected argument `present` to have a row for each of the {done} samples in `batches`, but got "
            f"{len(present)}."
        )
    return meter.report(empty=empty)


def _passes(network: nn.Module, modalities: Sequence[str] | None, **options: Any) -> MaskedPasses:
    if not isinstance(network, AGM):
        return MaskedPasses(network, MaskedOptions(modalities=modalities, **options))
    given = [name for name, value in {"modalities": modalities, **options}.items() if value is not None]
    if given:
        raise ValueError(
            f"Expected an agm.AGM without {', '.join(given)}, which it has of its own, but got both. "
            "Leave them out, or pass model.module."
        )
    # Passes of their own, so that those of training stay as they are, with what is learnt of absent inputs by now.
    absent = {**network._passes.absent, **dict(network.absent.items())}
    return MaskedPasses(network.module, replace(network._options, absent=absent, passes="auto"))


def _parts(batch: Any, number: int) -> tuple[Mapping[str, Any], Tensor, Tensor | None]:
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3) and isinstance(batch[0], Mapping):
        return batch[0], batch[1], batch[2] if len(batch) == 3 else None
    raise TypeError(
        f"Expected argument `batches` to give pairs of a mapping of inputs and a target, but batch {number} is "
        f"{type(batch).__name__}{f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''}. "
        'Give for example ({"audio": a, "visual": v}, y), and as a third entry which samples have which modalities.'
    )


def _check_empty(empty: Empty) -> None:
    if empty in ("majority", "chance"):
        return
    if isinstance(empty, (int, float)) and not isinstance(empty, bool) and 0 <= empty <= 1:
        return
    raise ValueError(
        f"Expected argument `empty` to be 'majority', 'chance' or an accuracy from 0 to 1, but got {empty!r}."
    )


def _correct(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the target's logit is the largest: (R, B, C), (B,) -> (R, B) bool. NaN is larger than all and wrong."""
    largest, predicted = logits.max(-1)
    return predicted.eq(target) & ~largest.isnan()


def _values(correct: Tensor, has: Tensor) -> Tensor:
    """(2**M - 1, B) bool, (B, M) bool -> (B, M) float64, NaN where a sample has none of the modality to count."""
    modalities = has.shape[1]
    orders = math.factorial(modalities)
    # The weights are numbers of orders over all orders. Sums of these numbers are exact, so that a sample's value does
    # not depend on its batch, as it would by how a product of matrices of other sizes rounds.
    weights = (weights_on(correct.device, modalities) * orders).round()
    values = (correct * _shared(has)).T @ weights.T / orders
    return values.masked_fill(~has, torch.nan)


def _shared(has: Tensor) -> Tensor:
    """How many modalities of a subset a sample has: (B, M) bool -> (2**M - 1, B) float64."""
    return _members(has.shape[1], has.device) @ has.double().T


@lru_cache(maxsize=64)
def _members(modalities: int, device: torch.device) -> Tensor:
    """Which modalities are in every non-empty subset: (2**M - 1, M) float64."""
    subsets = torch.arange(1, 2**modalities).unsqueeze(1)
    return (subsets >> torch.arange(modalities) & 1).double().to(device)
