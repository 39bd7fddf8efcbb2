"""The modulation as functions: logits in, logits out, the gradient between them rescaled."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from agm import ops
from agm.modulation import unfused
from agm.modulation.checks import check_backend, check_presence, check_sample, check_settings, check_step
from agm.modulation.scaling import ScaleSubsets
from agm.modulation.scores import Score, ScoreName, find_score
from agm.modulation.state import ModulationState
from agm.modulation.unfused import Settings
from agm.ops import _checks, reference
from agm.ops._derivatives import once_differentiable
from agm.ops.reference import accumulation_dtype
from agm.shapley.sampling import SubsetSample

__all__ = ["fused_modulate", "fused_modulate_cross_entropy"]


class _CrossEntropyOfSubsets(torch.autograd.Function):
    """The loss and the joint logits forward; backward, c_S times the gradient of both into every subset's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        masked_logits: Tensor,
        loss: Tensor,
        target: Tensor,
        weight: Tensor | None,
        normalizer: Tensor,
        sums: Tensor,
        subset_scales: Tensor,
        ignore_index: int,
        label_smoothing: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        logits = masked_logits[-1]
        ctx.save_for_backward(logits, target, weight, normalizer, sums, subset_scales)
        ctx.settings = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "backend": backend}
        ctx.set_materialize_grads(False)
        return loss.view(()), logits

    @staticmethod
    @once_differentiable(
        "fused_modulate_cross_entropy",
        "For a gradient penalty take the cross-entropy of masked_logits[-1], whose gradient is not modulated.",
    )
    def backward(ctx: Any, grad_loss: Tensor | None, grad_logits: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, target, weight, normalizer, sums, subset_scales = ctx.saved_tensors
        if grad_loss is not None:
            saved = (logits, target, weight, normalizer, sums, subset_scales)
            grad = ops.modulate_cross_entropy_backward(grad_loss, grad_logits, *saved, **ctx.settings)
        elif grad_logits is not None:
            grad = ops.modulate_backward(grad_logits, subset_scales, backend=ctx.settings["backend"])
        else:
            grad = None
        return grad, *[None] * 9


def _check(
    masked_logits: Tensor,
    target: Tensor,
    state: ModulationState,
    alpha: float,
    max_gap: float | None,
    floor: float,
    ignore_index: int,
    score: Score,
    present: Tensor | None,
    sample: SubsetSample | None,
    update: bool,
    process_group: ProcessGroup | None,
    backend: str,
) -> float:
    """What both functions check before they compute anything; returns `max_gap` as a float."""
    gap = check_settings(state, alpha, max_gap, floor, ignore_index, update, process_group)
    if sample is None:
        _checks.check_masked_logits(masked_logits, state.num_modalities)
    else:
        check_sample(sample, masked_logits, state.num_modalities)
        check_backend(backend, "sample")
    check_step(target, state, masked_logits.shape[1:], masked_logits.device, ignore_index, score, backend)
    if present is not None:
        check_presence("present", present, masked_logits.shape[1], state.num_modalities, masked_logits.device)
        check_backend(backend, "present")
    return gap


def fused_modulate(
    masked_logits: Tensor,  # (2**M - 1, B, ..., C)
    target: Tensor,  # (B, ...), or as `score` takes it
    state: ModulationState,
    *,
    alpha: float = 1.0,
    max_gap: float | None = 10.0,
    floor: float = 1e-8,
    ignore_index: int = -100,
    score: ScoreName = "cross_entropy",
    update: bool = True,
    present: Tensor | None = None,  # (B, M)
    sample: SubsetSample | None = None,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """Adaptive gradient modulation of one batch: returns the joint logits, whose backward is modulated.

    Forward, the result is the last row of `masked_logits`. Backward, with g the gradient that any loss sends
    into the result, the masked logits of subset S receive `c_S * g`, `c_S = sum_m kappa_m w(m, S)`, where the
    modulation coefficients kappa come from the mono-modal responses of this batch and from the running scores
    in `state` (Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023,
    eq. 3-10). With alpha = 0 this is plain joint training.

    Each call is one step: it takes the running scores once, whatever the gradient mode, unless `update` is
    False. Under gradient accumulation every micro-batch therefore is a step of its own, with its own coefficients.
    Several calls may come before a backward: each keeps the scales that it computed. The coefficients carry no
    gradient, and the modulated gradient cannot be differentiated again (an error says so). The result is a view of
    `masked_logits`, so writing to it in place is an error while a gradient is needed. No call synchronises with the
    device. A step whose scores or coefficients are not finite is skipped: it uses kappa = 1 and leaves the running
    scores alone. A logit of -inf excludes a class for a sample: scores are as if that class did not exist.

    Args:
        masked_logits: (2**M - 1, B, C), any floating dtype (float64 is computed in float64, everything else in
            float32): row i holds the logits of the subset with bitmask i + 1, the last row the joint logits. There may
            be more dimensions between B and C: tokens, segments, pixels, each of which is scored.
        target: (B,) class indices in [0, C), or `ignore_index`; (B, ...) where the logits have more dimensions. What
            another `score` takes is said there. A wrong index is an error on a CPU; on a GPU, and in a compiled graph,
            it makes the step a skipped one.
        state: the running scores, written in place; the last step's scores, ratios, coefficients and counts can
            be read there.
        alpha: strength of the modulation, >= 0; the paper uses 2.5 (AV-MNIST), 4.0 (UR-Funny), 1.5 (CREMA-D).
        max_gap: bound of `tau_m - r_m`; None for none. The paper uses 10 (two modalities) and 7 (three).
        floor: smallest probability in the scores, in [0, 1): a sample's cross-entropy is at most -log(floor).
        ignore_index: what has this target counts in no score.
        score: what the responses are scored by, whose mean over the batch is a modality's score: "cross_entropy" (class
            indices, the only one that kernels serve), "soft_cross_entropy" (probabilities: soft labels, mixup),
            "binary_cross_entropy" (several labels, or a single logit), "ordinal" (ranks), "squared_error" and
            "absolute_error" (regression), or a function of a response and the target that returns a cost for each
            sample. `agm.modulation.scores` says what they compute, and why. The loss remains the user's.
        update: False leaves `state` as it is, its statistics too.
        present: (B, M) bool, which samples have which modalities; None: all have all. The rows must have been computed
            with absent inputs where a sample lacks a modality, as `agm.masked_logits(present=...)` does. There it
            contributes nothing: its response is 0, the others' are the Shapley values among them, its score is the mean
            over the samples that have it, and it gets no gradient. A modality that no sample of the batch has takes no
            part in the step and keeps its running score. For the reference backend.
        sample: what `agm.sample_subsets` drew, where `masked_logits` (R, B, C) hold these subsets instead of all: the
            responses are then estimates. For the reference backend.
        process_group: of processes that take this step together, each on samples of its own: scores, ratios and
            coefficients are those of all their samples, and `state` is the same everywhere. One all-reduce of 2M + 2
            numbers (3M + 2 with `present`), in which every process of the group must take part, also with an empty
            batch or with ignored rows alone; all of them give `present`, or none, and the same `sample`. None: no
            other process counts.
        backend: "auto", or the name of one in `agm.backends()`, which is then used or raises.

    Returns:
        (B, ..., C), the joint logits.

    Raises:
        TypeError: `masked_logits` is not floating or `target` not what `score` takes, or `state` is not a
            `ModulationState`.
        ValueError: a shape, device, class index or setting that cannot be; nothing has been computed then.
        RuntimeError: a backend asked for by name cannot serve here.
    """
    scored = find_score(score)
    options = (scored, present, sample, update, process_group, backend)
    max_gap = _check(masked_logits, target, state, alpha, max_gap, floor, ignore_index, *options)
    settings = Settings(float(alpha), max_gap, float(floor), ignore_index, update)
    if present is not None:
        masked_logits = unfused.restricted(masked_logits, present, sample)
    rows = masked_logits.flatten(1, -2)
    if present is not None or sample is not None or not scored.served:
        subset_scales = unfused.modulate_rows(
            masked_logits, target, state, settings, scored, present, sample, process_group
        )
    else:

        def step(values: Tensor, counts: Tensor, settings: Settings) -> Tensor:
            return ops.modulate(rows, target.long().flatten(), values, counts, **settings._asdict(), backend=backend)

        if process_group is None:
            subset_scales = step(state.values, state.counts, settings)
        else:
            coefficients, _ = unfused.shared_step(step, state.values, state.counts, settings, process_group)
            subset_scales = reference.subset_scales(coefficients)
    if not (torch.is_grad_enabled() and masked_logits.requires_grad):
        return masked_logits[-1]
    logits: Tensor = ScaleSubsets.apply(rows, subset_scales, backend)
    return logits if masked_logits.dim() == 3 else logits.view(masked_logits.shape[1:])


def fused_modulate_cross_entropy(
    masked_logits: Tensor,  # (2**M - 1, B, ..., C)
    target: Tensor,  # (B, ...)
    state: ModulationState,
    *,
    alpha: float = 1.0,
    max_gap: float | None = 10.0,
    floor: float = 1e-8,
    ignore_index: int = -100,
    weight: Tensor | None = None,  # (C,)
    label_smoothing: float = 0.0,
    update: bool = True,
    present: Tensor | None = None,  # (B, M)
    sample: SubsetSample | None = None,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`fused_modulate` together with the mean cross-entropy of the joint logits, which are read once for both.

    The backward writes the gradient of every subset's logits directly; no softmax is stored. Class weights and label
    smoothing belong to the loss alone; the scores are plain cross-entropies.

    Args:
        masked_logits, target, state, alpha, max_gap, floor, ignore_index, update, present, sample, process_group,
            backend: as in `fused_modulate`; with `present` or `sample` the loss is torch's own. With `process_group` it
            still is the mean over the samples of this process, whose gradients DistributedDataParallel averages.
        weight: (C,) class weights, as in `torch.nn.functional.cross_entropy`; constants, they get no gradient.
        label_smoothing: in [0, 1], as there.

    Returns:
        The loss, () float32 (float64 for float64 logits), and the joint logits (B, ..., C). Both lead the modulated
        gradient back into the masked logits. If every target is ignored the loss is NaN, as in torch, and its gradient
        0. Where a wrong class index is no error (on a GPU, in a compiled graph) it makes the loss NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as in `fused_modulate`, and for a `weight` or `label_smoothing` that
            cannot be.
    """
    _checks.check_label_smoothing(label_smoothing)
    options = (find_score("cross_entropy"), present, sample, update, process_group, backend)
    max_gap = _check(masked_logits, target, state, alpha, max_gap, floor, ignore_index, *options)
    wide = accumulation_dtype(masked_logits.dtype)
    if weight is not None:
        _checks.check_class_weight(weight, masked_logits)
    if masked_logits.requires_grad:
        _checks.check_kept(target=target, weight=weight)
    if weight is not None:
        weight = weight.detach().to(wide)
    target = target.long()
    if present is not None or sample is not None:
        logits = fused_modulate(
            masked_logits,
            target,
            state,
            alpha=alpha,
            max_gap=max_gap,
            floor=floor,
            ignore_index=ignore_index,
            update=update,
            present=present,
            sample=sample,
            process_group=process_group,
        )
        of_loss: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        return F.cross_entropy(logits.to(wide).flatten(0, -2), target.flatten(), weight, **of_loss), logits
    shape = masked_logits.shape[1:]
    masked_logits, target = masked_logits.flatten(1, -2), target.flatten()
    modulation = Settings(float(alpha), max_gap, float(floor), ignore_index, update)

    def step(values: Tensor, counts: Tensor, modulation: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return ops.modulate_cross_entropy(
            masked_logits,
            target,
            values,
            counts,
            weight=weight,
            label_smoothing=float(label_smoothing),
            **modulation._asdict(),
            backend=backend,
        )

    if process_group is None:
        loss, subset_scales, normalizer, sums = step(state.values, state.counts, modulation)
    else:
        coefficients, own = unfused.shared_step(step, state.values, state.counts, modulation, process_group)
        loss, _, normalizer, sums = own
        subset_scales = reference.subset_scales(coefficients)
    if not (torch.is_grad_enabled() and masked_logits.requires_grad):
        return loss, masked_logits[-1] if len(shape) == 2 else masked_logits[-1].view(shape)
    saved = (target, weight, normalizer, sums, subset_scales)
    settings = (ignore_index, float(label_smoothing), backend)
    loss, logits = _CrossEntropyOfSubsets.apply(masked_logits, loss, *saved, *settings)
    return loss, logits if len(shape) == 2 else logits.view(shape)
