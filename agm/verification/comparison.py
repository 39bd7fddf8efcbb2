"""A training step of a model beside the definition's, and how far they are apart."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.arguments import Arguments
from agm._inputs.rows import copied
from agm._module_state.replace_forward import answering
from agm.engine import AGM
from agm.modulation.additive import AdditiveLogits
from agm.modulation.functional import fused_modulate
from agm.modulation.modulator import Modulator
from agm.modulation.scores import find_score
from agm.modulation.unfused import restricted
from agm.ops._autocast import autocasts
from agm.shapley.sampling import SubsetSample
from agm.shapley.weights import subset_weights
from agm.verification.distances import difference, largest_of
from agm.verification.leftovers import differences as left_differences
from agm.verification.leftovers import left_behind
from agm.verification.oracle import separate_passes
from agm.verification.result import Verification

__all__ = ["compare"]


_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


_SMALL = 0.1  # a gradient below this part of the largest one may be nothing but rounding (a bias before batch norm)


@dataclass
class _Step:
    """What one way of taking a training step gives."""

    subsets: Sequence[int]
    sample: SubsetSample | None  # None: all subsets
    masked: Tensor  # (2**M - 1, B, ..., C), or a row for each of a sample of subsets
    gradients: dict[str, Tensor | None]
    coefficients: Tensor  # (M,)
    buffers: dict[str, Tensor]
    left: dict[str, Any]


def compare(
    model: AGM,
    given: Mapping[str, Any],
    target: Tensor,
    present: Tensor | None,
    restore: Callable[[], None],
    tolerance: float | None,
) -> Verification:
    """The differences between the two steps; the model is restored after each."""
    try:
        own, separate = _both_steps(model, given, target, present, restore, tracks=True)
    except RuntimeError as error:
        if "leaf variables" not in str(error):
            raise
        restore()  # forward asks for gradients of its input, which only a leaf can be asked for
        own, separate = _both_steps(model, given, target, present, restore, tracks=False)
    masked, expected = own.masked, separate.masked
    scale = largest_of(expected)
    largest = max((largest_of(x) for x in separate.gradients.values() if x is not None), default=0.0)
    differences = [
        (_words(subset, model.modalities), difference(mine, its, scale))
        for subset, mine, its in zip(own.subsets, masked, expected, strict=True)
    ]
    return Verification(
        masked=model._options.masked,
        logits={words: max(d for other, d in differences if other == words) for words, _ in differences},
        gradients={
            name: _gradient_difference(own.gradients[name], x, _SMALL * largest)
            for name, x in separate.gradients.items()
        },
        buffers={name: difference(own.buffers[name], x, largest_of(x)) for name, x in separate.buffers.items()},
        coefficients={
            name: difference(kappa, expected_kappa, abs(float(expected_kappa)))
            for name, kappa, expected_kappa in zip(
                model.modalities, own.coefficients, separate.coefficients, strict=True
            )
        },
        tolerance=_tolerance(model, given, masked) if tolerance is None else tolerance,
        left=left_differences(own.left, separate.left),
        not_finite=tuple(_not_finite(separate, own.subsets, model.modalities)),
    )


def _both_steps(
    model: AGM,
    given: Mapping[str, Any],
    target: Tensor,
    present: Tensor | None,
    restore: Callable[[], None],
    *,
    tracks: bool,
) -> tuple["_Step", "_Step"]:
    """The model's step and that of the definition; `tracks` says whether the gradient of inputs is looked at."""
    _set_in_motion(model.modulator)
    own = _own_step(model, given, target, present, tracks)
    restore()
    _set_in_motion(model.modulator)
    separate = _separate_step(model, given, target, present, own.sample, tracks)
    restore()
    return own, separate


def _not_finite(step: "_Step", subsets: Sequence[int], modalities: tuple[str, ...]) -> Iterator[str]:
    """What holds NaN or infinities; minus infinity rules a class out and is none of these."""
    for subset, logits in zip(subsets, step.masked, strict=True):
        if bool((logits.isnan() | logits.isposinf()).any()):
            yield f"logits of {_words(subset, modalities)}"
    for name, gradient in step.gradients.items():
        if gradient is not None and not bool(gradient.isfinite().all()):
            yield f"gradient of {name}"


def _set_in_motion(modulator: Modulator) -> None:
    modulator.training, modulator.start, modulator.stop, modulator.epoch = True, 0, None, 0
    modulator.alpha = modulator.alpha or 1.0


def _own_step(model: AGM, given: Mapping[str, Any], target: Tensor, present: Tensor | None, tracks: bool) -> _Step:
    """As training takes it."""
    arguments, leaves = _tracked(model, given, tracks)
    kept: list[tuple[Tensor | AdditiveLogits, SubsetSample | None]] = []
    modulate = model.modulator.forward

    def watched(masked_logits: Tensor | AdditiveLogits, target: Tensor | None = None, **others: Any) -> Tensor:
        kept.append((masked_logits, others["sample"]))
        return modulate(masked_logits, target, **others)

    positional, named = model._passes.binding.as_given(arguments)
    with answering({model.modulator: watched}):
        output = model(*positional, **named, **{model._target_name: target}, present=present)
    left = left_behind(model.module)
    loss = _loss(model, model._passes.outputs.logits(output), target)
    gradients = _gradients(loss, leaves)
    masked, sample = kept[0]
    if isinstance(masked, AdditiveLogits):  # from which the responses of all subsets follow, whatever was drawn
        masked, sample = masked.stacked(), None
    return _step(model, sample, masked.detach(), leaves, gradients, model.modulator.state.coefficients, left)


def _separate_step(
    model: AGM,
    given: Mapping[str, Any],
    target: Tensor,
    present: Tensor | None,
    sample: SubsetSample | None,
    tracks: bool,
) -> _Step:
    """By the definition, with nothing of the above but the definition of an absent input."""
    model._follow()
    arguments, leaves = _tracked(model, given, tracks)
    subsets, absent = _subsets(model, sample), model._passes.absent_inputs(arguments)
    if present is not None:
        here = dict(zip(model.modalities, present.unbind(1), strict=True))
        arguments = model._passes.lacking(arguments, absent, here)
    left: dict[str, Any] = {}
    masked = separate_passes(
        model._passes, arguments, absent, subsets[:-1], tracks, lambda: left.update(left_behind(model.module))
    )
    settings, state = model.modulator, copy.deepcopy(model.modulator.state)
    with torch.no_grad():
        fused_modulate(
            masked.detach(),
            target,
            state,
            alpha=settings.alpha,
            max_gap=settings.max_gap,
            floor=settings.floor,
            ignore_index=settings.ignore_index,
            score=settings.score,
            present=present,
            sample=sample,
            backend="reference",
        )
    joint = masked[-1].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(model, joint, target), joint)
    weights = subset_weights(len(model.modalities)) if sample is None else sample.weights
    scales = (state.coefficients @ weights.to(state.coefficients)).to(gradient.dtype)
    upstream = scales.view(-1, *[1] * gradient.dim()) * gradient
    rows = masked if present is None else restricted(masked, present, sample)
    gradients = _gradients(rows, leaves, upstream)
    return _step(model, sample, masked.detach(), leaves, gradients, state.coefficients, left)


def _gradients(outputs: Tensor, leaves: Mapping[str, Tensor], upstream: Tensor | None = None) -> list[Tensor | None]:
    """By a backward as in training, since a reentrant checkpoint takes no other; what was there is put back."""
    before = [leaf.grad for leaf in leaves.values()]
    for leaf in leaves.values():
        leaf.grad = None
    torch.autograd.backward(outputs, upstream)
    found = [
        leaf.grad.to_dense() if leaf.grad is not None and leaf.grad.is_sparse else leaf.grad for leaf in leaves.values()
    ]
    for leaf, gradient in zip(leaves.values(), before, strict=True):
        leaf.grad = gradient
    return found


def _subsets(model: AGM, sample: SubsetSample | None) -> Sequence[int]:
    return range(1, 2 ** len(model.modalities)) if sample is None else sample.subsets


def _tracked(model: AGM, given: Mapping[str, Any], tracks: bool) -> tuple[Arguments, dict[str, Tensor]]:
    """Arguments of the network, and by name what gets a gradient: parameters and, if `tracks`, floating inputs."""
    leaves: dict[str, Tensor] = {
        name.removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    arguments = model._passes.binding.split((), given)

    def tracked(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().clone()
        if leaf.is_floating_point() and tracks:
            name = f"input `{path[0].key}`{pytree.keystr(path[1:])}"
            leaves[name] = leaf.requires_grad_()
        return leaf.clone()  # no leaf of autograd, so that the network may write to it

    inputs = pytree.tree_map_with_path(tracked, arguments.inputs)
    return arguments._replace(inputs=inputs, rest=copied(arguments.rest)), leaves


def _step(
    model: AGM,
    sample: SubsetSample | None,
    masked: Tensor,
    leaves: Mapping[str, Tensor],
    gradients: Sequence[Tensor | None],
    coefficients: Tensor,
    left: dict[str, Any],
) -> _Step:
    buffers = {name: buffer.detach().clone() for name, buffer in model.module.named_buffers()}
    named = dict(zip(leaves, gradients, strict=True))
    return _Step(_subsets(model, sample), sample, masked, named, coefficients.clone(), buffers, left)


def _loss(model: AGM, logits: Tensor, target: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return find_score(model.modulator.score).loss(wide, target, model.modulator.ignore_index)


def _tolerance(model: nn.Module, given: Mapping[str, Any], masked: Tensor) -> float:
    tensors = [masked, *model.parameters(), *(x for x in pytree.tree_leaves(given) if isinstance(x, Tensor))]
    dtypes = {tensor.dtype for tensor in tensors}
    if autocasts(masked.device):
        dtypes.add(torch.get_autocast_dtype(masked.device.type))
    return max(_TOLERANCES.get(dtype, 0.0) for dtype in dtypes)


def _words(subset: int, modalities: tuple[str, ...]) -> str:
    names = [name for bit, name in enumerate(modalities) if subset >> bit & 1]
    return " + ".join(names) + (" (joint)" if len(names) == len(modalities) else "")


def _gradient_difference(got: Tensor | None, expected: Tensor | None, small: float) -> float:
    """What has no gradient has a zero one."""
    present = expected if expected is not None else got
    if present is None:
        return 0.0
    got, expected = (torch.zeros_like(present) if x is None else x for x in (got, expected))
    return difference(got, expected, max(largest_of(expected), small))
