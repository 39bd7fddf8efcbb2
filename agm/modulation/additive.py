"""The modulation of additive fusions: a linear layer on concatenated features, or summed unimodal logits."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from agm import ops
from agm.modulation import unfused
from agm.modulation.checks import check_backend, check_presence, check_settings, check_step
from agm.modulation.scores import Score, ScoreName, find_score
from agm.modulation.state import ModulationState
from agm.modulation.unfused import Settings
from agm.ops import _checks, reference
from agm.ops._derivatives import once_differentiable
from agm.ops.reference import accumulation_dtype
from agm.shapley.sampling import SubsetSample
from agm.shapley.weights import proper_subsets

__all__ = ["AdditiveLogits", "fused_modulate_additive", "modulate_summands", "scale_additive"]

_OP = "fused_modulate_additive"
_INSTEAD = "For a gradient penalty take the sum of the parts, or the joint logits, whose gradient is not modulated."


class AdditiveLogits(NamedTuple):
    """Masked logits that are a sum over the modalities, beside joint logits of a pass of their own.

    `z_S = sum_{m in S} p_m + sum_{m not in S} q_m` for every proper subset S. `agm.Modulator` takes them where it takes
    masked logits.

    Attributes:
        few: (M, B + 1, ..., C), of each modality p_m (B, ..., C) and behind it q_m.
        joint: (B, ..., C), the joint logits.
    """

    few: Tensor
    joint: Tensor

    @property
    def present(self) -> Tensor:
        """p_m (M, B, ..., C)."""
        return self.few[:, :-1]

    @property
    def absent(self) -> Tensor:
        """q_m (M, ..., C)."""
        return self.few[:, -1]

    def detach(self) -> "AdditiveLogits":
        """The same without a graph."""
        return AdditiveLogits(self.few.detach(), self.joint.detach())

    def stacked(self, sample: SubsetSample | None = None) -> Tensor:
        """(2**M - 1, B, ..., C), as `agm.masked_logits` returns it; (R, B, ..., C) of a sample of subsets."""
        subsets = proper_subsets(len(self.few)) if sample is None else sample.subsets[:-1]
        # Not two slices: their gradients would be written in four operations, and added.
        pairs = [few.split((few.shape[0] - 1, 1)) for few in self.few]
        rows = [
            reduce(torch.add, (one if subset >> m & 1 else none for m, (one, none) in enumerate(pairs)))
            for subset in subsets
        ]
        return torch.stack([*rows, self.joint])


class _ScaleParts(torch.autograd.Function):
    """The joint logits forward; backward, their gradient scaled into the parts that they are the sum of."""

    @staticmethod
    def forward(
        ctx: Any,
        present: Tensor,
        absent: Tensor,
        bias: Tensor | None,
        joint_logits: Tensor | None,
        logits: Tensor,  # the joint logits, given or computed
        scales: Tensor,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(scales)
        ctx.given_joint, ctx.backend = joint_logits is not None, backend
        return (logits if joint_logits is None else joint_logits).view_as(logits)

    @staticmethod
    @once_differentiable(_OP, _INSTEAD)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (scales,) = ctx.saved_tensors
        found = ops.modulate_additive_backward(grad, scales, given_joint=ctx.given_joint, backend=ctx.backend)
        present, absent, bias, joint_logits = ctx.needs_input_grad[:4]
        return (
            found.few[:, :-1] if present else None,
            found.few[:, -1] if absent else None,
            found.bias if bias else None,
            found.joint if joint_logits else None,
            None,
            None,
            None,
        )


class _ScaleFew(torch.autograd.Function):
    """As `_ScaleParts`, of `AdditiveLogits`."""

    @staticmethod
    def forward(ctx: Any, few: Tensor, joint: Tensor, scales: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(scales)
        ctx.backend = backend
        return joint.view_as(joint)

    @staticmethod
    @once_differentiable(_OP, _INSTEAD)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (scales,) = ctx.saved_tensors
        found = ops.modulate_additive_backward(grad, scales, given_joint=True, backend=ctx.backend)
        return found.few, found.joint, None, None


def fused_modulate_additive(
    present: Tensor | Sequence[Tensor],  # (M, B, C), or M of (B, C)
    absent: Tensor | Sequence[Tensor],  # (M, C) or (M, 1, C), or M of (C,) or (1, C)
    target: Tensor,  # (B,), or as `score` takes it
    state: ModulationState,
    *,
    bias: Tensor | None = None,  # (C,)
    joint_logits: Tensor | None = None,  # (B, C)
    alpha: float = 1.0,
    max_gap: float | None = 10.0,
    floor: float = 1e-8,
    ignore_index: int = -100,
    score: ScoreName = "cross_entropy",
    update: bool = True,
    available: Tensor | None = None,  # (B, M)
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """`fused_modulate` where the modalities add up to the logits: cost O(M) for any number of them, up to 16.

    With p_m (B, C) what modality m adds to the logits, q_m (C,) what it adds when it is absent, and a bias b, the
    masked logits of a subset S are `z_S = b + sum_{m in S} p_m + sum_{m not in S} q_m`: a linear layer on concatenated
    features (p_m = W_m h_m), or a sum of unimodal logits. The mono-modal responses are Shapley values (Li et al.,
    "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023, eq. 3-5), and those of an
    additive game need no subsets:

        phi_m = p_m - q_m + (z_full - sum_j (p_j - q_j)) / M

    Scores, coefficients kappa and running scores follow from them as in the paper (eq. 6-10), and the gradients are
    those that `fused_modulate` sends through the 2**M - 1 rows z_S, summed: with k the mean of kappa and g the
    gradient of the result,

    - without `joint_logits` (the joint pass used these very features) the result is `b + sum_m p_m`;
      p_m receives `kappa_m * g`, q_m `(k - kappa_m) * sum_b g`, and b `k * sum_b g`;
    - with `joint_logits` (the joint pass used other features: batch norm or dropout in train mode, the masked passes
      in eval mode) the result is those logits, which receive `k * g`; p_m receives `(kappa_m - k) * g` and q_m
      `(k - kappa_m) * sum_b g`. Their bias is part of them.

    Up to rounding it is equal to `fused_modulate` on those rows, the last of them z_full or the joint logits, in
    result, state and gradients. What is said there of steps, gradient accumulation, second derivatives and skipped
    steps holds here, and so does it that writing to the result in place is an error while a gradient is needed.

    Args:
        present: (M, B, C), or a sequence of M tensors (B, C), which are stacked: p_m, any floating dtype (float64 is
            computed in float64, everything else in float32).
        absent: (M, C) or (M, 1, C), or a sequence of M tensors (C,) or (1, C): q_m, cast to the dtype of `present`.
        target: (B,) class indices in [0, C), or `ignore_index`, or what `score` takes. A wrong index is an error on a
            CPU; on a GPU, and in a compiled graph, it makes the step a skipped one.
        state: the running scores, written in place, of as many modalities.
        bias: (C,), cast to the dtype of `present`; None for none, and where `joint_logits` are given.
        joint_logits: (B, C) of the dtype of `present`: the logits of the joint pass, where it used other features.
        alpha, max_gap, floor, ignore_index, score, update, process_group, backend: as in `fused_modulate`.
        available: (B, M) bool, which samples have which modalities: what `present` is to `fused_modulate`. Where a
            sample lacks one, its p_m is not looked at, q_m stands for it, and it takes no part.

    Logits may have more dimensions between B and C (tokens, segments): `present` is then (M, B, ..., C), `absent`
    (M, ..., C) or (M, 1, ..., C), `joint_logits` (B, ..., C) and `target` (B, ...). The kernels do not serve these.

    Returns:
        (B, C) of the dtype of `present`, the joint logits.

    Raises:
        TypeError: a tensor that is none, is not floating, or has another dtype than it may; or `state` is not a
            `ModulationState`.
        ValueError: a shape, device, class index or setting that cannot be, or a bias beside joint logits; nothing
            has been computed then.
        RuntimeError: a backend asked for by name cannot serve here.
    """
    max_gap = check_settings(state, alpha, max_gap, floor, ignore_index, update, process_group)
    first = _checks.check_present(present, state.num_modalities)
    _checks.check_absent(absent, state.num_modalities, first)
    if bias is not None:
        _checks.check_bias(bias, first, joint_logits is not None)
    if joint_logits is not None:
        _checks.check_joint_logits(joint_logits, first)
    scored = find_score(score)
    _check_parts(first, target, state, ignore_index, scored, available, backend)

    stacked = present if isinstance(present, Tensor) else torch.stack(list(present))
    shape = stacked.shape[2:]
    rows = absent if isinstance(absent, Tensor) else torch.stack([row.view(shape) for row in absent])
    rows = rows.reshape(stacked.shape[0], *shape).to(stacked.dtype)
    bias = None if bias is None else bias.to(stacked.dtype)
    settings = Settings(float(alpha), max_gap, float(floor), ignore_index, update)
    parts = (stacked, rows, bias, joint_logits)
    return _modulated(
        parts,
        lambda logits, scales: _ScaleParts.apply(*parts, logits, scales, backend),
        target,
        state,
        settings,
        scored,
        available,
        process_group,
        backend,
    )


def modulate_summands(
    logits: AdditiveLogits,
    target: Tensor,
    state: ModulationState,
    *,
    alpha: float,
    max_gap: float | None,
    floor: float,
    ignore_index: int,
    score: ScoreName,
    available: Tensor | None,
    process_group: ProcessGroup | None,
    backend: str,
) -> Tensor:
    """`fused_modulate_additive` of the parts of a sum beside joint logits, whose gradients are written once.

    Args:
        logits: the parts, whose shapes fit.
        target, state, alpha, max_gap, floor, ignore_index, score, available, process_group, backend: as there.

    Raises:
        ValueError, RuntimeError: as there.
    """
    max_gap = check_settings(state, alpha, max_gap, floor, ignore_index, True, process_group)
    scored = find_score(score)
    parts = (logits.present, logits.absent, None, logits.joint)
    _check_parts(parts[0], target, state, ignore_index, scored, available, backend)
    settings = Settings(float(alpha), max_gap, float(floor), ignore_index, True)
    return _modulated(
        parts,
        lambda _, scales: _ScaleFew.apply(*logits, scales, backend),
        target,
        state,
        settings,
        scored,
        available,
        process_group,
        backend,
    )


def _check_parts(
    present: Tensor,  # (M, B, ..., C)
    target: Tensor,
    state: ModulationState,
    ignore_index: int,
    score: Score,
    available: Tensor | None,
    backend: str,
) -> None:
    """What belongs to a step of parts that fit each other."""
    check_step(target, state, present.shape[1:], present.device, ignore_index, score, backend)
    if present.dim() > 3:
        check_backend(backend, "(M, B, ..., C)")
    if available is not None:
        check_presence("available", available, present.shape[1], state.num_modalities, present.device)
        check_backend(backend, "available")


def _modulated(
    parts: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    scale: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    state: ModulationState,
    settings: Settings,
    score: Score,
    available: Tensor | None,
    process_group: ProcessGroup | None,
    backend: str,
) -> Tensor:
    """One step of p_m, q_m, b and given joint logits, and the joint logits with the graph that `scale` gives them."""
    joint_logits = parts[3]
    if available is not None or not score.served or parts[0].dim() > 3:
        responses, joint = _available_responses(*parts, available)
        return unfused.modulate_responses(responses, joint, target, state, settings, score, available, process_group)
    labels = target.long()

    def step(values: Tensor, counts: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        return ops.modulate_additive(*parts, labels, values, counts, **settings._asdict(), backend=backend)

    if process_group is None:
        computed, scales = step(state.values, state.counts, settings)
    else:
        coefficients, local = unfused.shared_step(step, state.values, state.counts, settings, process_group)
        computed, scales = local[0], reference.additive_scales(coefficients, joint_logits is not None)
    logits = computed if joint_logits is None else joint_logits.detach()
    if not (torch.is_grad_enabled() and any([part is not None and part.requires_grad for part in parts])):
        return logits
    return scale(logits, scales)


def scale_additive(logits: AdditiveLogits, coefficients: Tensor, available: Tensor | None, backend: str) -> Tensor:
    """The joint logits; backward, what `fused_modulate_additive` sends into the parts where these are kappa.

    Args:
        logits: the parts of a sum, and the joint logits.
        coefficients: (M,) float64, kappa.
        available: (B, M) bool, which samples have which modalities; None: all have all.
        backend: as there.
    """
    if available is not None or logits.few.dim() > 3:
        responses, joint = _available_responses(logits.present, logits.absent, None, logits.joint, available)
        return unfused.scale_responses(responses, joint, coefficients)
    result: Tensor = _ScaleFew.apply(*logits, reference.additive_scales(coefficients, True), backend)
    return result


def _available_responses(
    present: Tensor, absent: Tensor, bias: Tensor | None, joint_logits: Tensor | None, available: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mono-modal responses (M, B, ..., C), with gradients, and the joint logits (B, ..., C) that they sum to.

    What no modality adds is shared by those that a sample has; by all if it has none. A part of -inf says that a sample
    cannot have a class, as in `reference.additive_responses`.
    """
    wide = accumulation_dtype(present.dtype)
    if available is None:
        here = torch.ones_like(present[:, :1], dtype=torch.bool)
    else:
        here = available.T.reshape(*available.T.shape, *[1] * (present.dim() - 2))  # (M, B, 1, ...)
    gone = (here & (present == -torch.inf)).any(0) | (absent == -torch.inf).any(0)
    own, none = _where_finite(present.to(wide)), _where_finite(absent.to(wide))
    added = torch.where(here, own - none.unsqueeze(1), 0.0)
    if joint_logits is None:
        common = none.sum(0)
        if bias is not None:
            gone = gone | (bias == -torch.inf)
            common = common + _where_finite(bias.to(wide))
        joint = (common + added.sum(0)).to(present.dtype).masked_fill(gone, -torch.inf)
        left = common.expand_as(joint)
    else:
        joint = joint_logits
        gone = gone | (joint == -torch.inf)
        left = _where_finite(joint.to(wide)) - added.sum(0)
    shares = torch.where(here.any(0), here, True).to(wide)
    return reference.without(gone, added + shares / shares.sum(0) * left), joint


def _where_finite(part: Tensor) -> Tensor:
    """With 0 in place of -inf."""
    return part.masked_fill(part == -torch.inf, 0.0)
