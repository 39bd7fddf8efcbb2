"""The modulation beyond the kernels: sampled subsets, lacking modalities, other scores, other processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from agm import ops
from agm.distributed import summed
from agm.modulation.scores import Score
from agm.modulation.state import ModulationState
from agm.ops import reference
from agm.ops._derivatives import once_differentiable
from agm.shapley.sampling import SubsetSample
from agm.shapley.weights import kept, weights_on

__all__ = [
    "Settings",
    "modulate_responses",
    "modulate_rows",
    "restricted",
    "row_weights",
    "scale_responses",
    "shared_step",
]


class Settings(NamedTuple):
    """Those of one step, checked."""

    alpha: float
    max_gap: float
    floor: float
    ignore_index: int
    update: bool


def restricted(masked_logits: Tensor, present: Tensor, sample: SubsetSample | None = None) -> Tensor:
    """Masked logits (R, B, ..., C) of the game that each sample's own modalities play; `present` is (B, M) bool.

    A subset that holds all modalities of a sample is worth its joint logits there, and one that holds none of them
    nothing. All other rows are what they were: in them a modality that the sample lacks is absent either way. Then
    lacking modalities are null players, whose responses are 0, and the others' are their Shapley values among
    themselves.
    """
    modalities = present.shape[1]
    bits = (
        _bits_on(masked_logits.device, modalities)
        if sample is None
        else _moved(_bits(sample.subsets, modalities), masked_logits.device)
    )
    own = present.float()
    shared = bits @ own.T  # (R, B), modalities of the subset that the sample has
    covers = shared == own.sum(1)
    shape = (*shared.shape, *[1] * (masked_logits.dim() - 2))
    rows = torch.where((shared == 0).view(shape), 0.0, masked_logits)
    return torch.where(covers.view(shape), masked_logits[-1], rows)


def modulate_rows(
    masked_logits: Tensor,  # (R, B, ..., C)
    target: Tensor,
    state: ModulationState,
    settings: Settings,
    score: Score,
    present: Tensor | None,  # (B, M) bool
    sample: SubsetSample | None,
    process_group: ProcessGroup | None,
) -> Tensor:
    """One step of the modulation; returns the scales c_S (R,) float64 of the rows' gradients.

    With `present` the rows are `restricted` ones.
    """
    with torch.no_grad():
        weights = row_weights(sample, state.num_modalities, masked_logits.device)
        shape = masked_logits.shape[1:]
        response = reference.responses(masked_logits.flatten(1, -2), weights)
        response = response.view(len(weights), *shape)
        given = (settings, score, present, process_group)
        coefficients = _step(response, masked_logits[-1], target, state, *given)
        return reference.subset_scales(coefficients, weights)


def modulate_responses(
    response: Tensor,  # (M, B, ..., C), which carry the gradient
    joint: Tensor,  # (B, ..., C), their sum
    target: Tensor,
    state: ModulationState,
    settings: Settings,
    score: Score,
    present: Tensor | None,  # (B, M) bool
    process_group: ProcessGroup | None,
) -> Tensor:
    """One step of the modulation on mono-modal responses; returns the joint logits, modulated."""
    with torch.no_grad():
        given = (settings, score, present, process_group)
        coefficients = _step(response.detach(), joint.detach(), target, state, *given)
    return scale_responses(response, joint, coefficients)


def scale_responses(response: Tensor, joint: Tensor, coefficients: Tensor) -> Tensor:
    """The joint logits (B, ..., C); backward, kappa_m times their gradient into each response (M, B, ..., C)."""
    logits: Tensor = _ScaleResponses.apply(response, joint.detach(), coefficients)
    return logits


def row_weights(sample: SubsetSample | None, modalities: int, device: torch.device) -> Tensor:
    """w(m, S) (M, R) float64 of the rows of masked logits: of all subsets, or of a sample of them."""
    return weights_on(device, modalities) if sample is None else _moved(sample.weights, device)


def _step(
    response: Tensor,
    joint: Tensor,
    target: Tensor,
    state: ModulationState,
    settings: Settings,
    score: Score,
    present: Tensor | None,
    process_group: ProcessGroup | None,
) -> Tensor:
    totals = score.totals(response, joint, target, present, settings.floor, settings.ignore_index)
    totals = summed(totals, process_group)
    finish = (settings.alpha, settings.max_gap, settings.update, score.of_mean, state.seen)
    return reference.finish_step(totals, state.values, state.counts, *finish)


def shared_step(
    step: Callable[[Tensor, Tensor, Settings], Any],
    values: Tensor,
    counts: Tensor,
    settings: Settings,
    process_group: ProcessGroup,
) -> tuple[Tensor, Any]:
    """Coefficients (M,) float64 of the batches of all processes together, and what `step` returns of this one's.

    Args:
        step: takes a step on the batch of this process, by kernels, as the first one of the state that it is given.
        values, counts: those of the state, which get the step on all batches.
        settings: of that step.
        process_group: those who take it together. Each must, whatever its batch.
    """
    modalities = values.shape[1]
    own, own_counts = torch.zeros_like(values), torch.zeros_like(counts)
    returned = step(own, own_counts, settings._replace(update=True))
    samples = own_counts[modalities + reference.SAMPLES].double()
    # Without samples the mean scores are no numbers, but their sums are.
    sums = torch.where(samples > 0, own[reference.SCORES] * samples, 0.0)
    totals = torch.cat([sums, own_counts[: modalities + reference.SAMPLES + 1].double()])
    totals = summed(totals, process_group)
    finish = (settings.alpha, settings.max_gap, settings.update)
    return reference.finish_step(totals, values, counts, *finish), returned


class _ScaleResponses(torch.autograd.Function):
    """The joint logits forward; backward, kappa_m times their gradient into every mono-modal response."""

    @staticmethod
    def forward(ctx: Any, response: Tensor, joint: Tensor, coefficients: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients)
        ctx.dtype = response.dtype
        return joint.view_as(joint)

    @staticmethod
    @once_differentiable(
        "fused_modulate_additive", "For a gradient penalty take the joint logits, whose gradient is not modulated."
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (coefficients,) = ctx.saved_tensors
        rows = ops.modulate_backward(grad.to(ctx.dtype).flatten(0, -2), coefficients)
        return rows.view(len(coefficients), *grad.shape), None, None


def _bits(subsets: tuple[int, ...], modalities: int) -> Tensor:
    """(R, M) float32: 1 where the subset holds the modality."""
    return (torch.tensor(subsets).unsqueeze(1) >> torch.arange(modalities) & 1).float()


@kept
def _bits_on(device: torch.device, modalities: int) -> Tensor:
    subsets = torch.arange(1, 2**modalities, device=device)
    return (subsets.unsqueeze(1) >> torch.arange(modalities, device=device) & 1).float()


def _moved(table: Tensor, device: torch.device) -> Tensor:
    """A table of this step on the device, without waiting for it."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)
