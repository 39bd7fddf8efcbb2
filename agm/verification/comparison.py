"""A training step of a model beside the definition's, and how far they are apart."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from agm._inputs.arguments import Arguments
from agm._inputs.rows import copied
from agm._module_state.compiled import is_compiled
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
from agm.verification.rounding import allowing, perturb, perturbed

__all__ = ["compare"]


_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


_IN_ONE = float("inf")  # of a parameter or a buffer that forward has made in one of the two steps alone
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
    dtypes: Collection[torch.dtype] = ()  # in which products were computed


class _Dtypes(TorchFunctionMode):
    """Notes in which dtypes products are computed inside: autocast and casts within forward are seen nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()
        self.hooks = False  # whether a tensor was given one

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.hooks |= func is Tensor.register_hook
        if getattr(func, "__name__", "") in _PRODUCTS and isinstance(result, Tensor):
            self.found.add(result.dtype)
        return result


_PRODUCTS = frozenset(
    (
        *("linear", "bilinear", "matmul", "__matmul__", "bmm", "mm", "mv", "addmm", "baddbmm", "einsum"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        "scaled_dot_product_attention",
    )
)


def compare(
    model: AGM,
    given: Mapping[str, Any],
    target: Tensor,
    present: Tensor | None,
    restore: Callable[[], None],
    tolerance: float | None,
) -> Verification:
    """The differences between the two steps; the model is restored after each."""
    lacking = set(_lacking_numbers(model))
    run = partial(_both_steps, model, given, target, present, restore)
    try:
        own, separate = run(tracks=True)
    except (RuntimeError, TypeError):
        restore()  # forward does with its input what cannot be done with one that has a gradient
        own, separate = run(tracks=False)
    tracks = any(name.startswith("input ") for name in separate.gradients)
    result = Verification(
        masked=model._options.masked,
        **_differences(model, own, separate),
        tolerance=_tolerance(model, given, own.masked, separate.dtypes) if tolerance is None else tolerance,
        not_finite=tuple(_not_finite(separate, own.subsets, model.modalities, lacking)),
    )
    if result.ok or result.not_finite or tolerance is not None:
        return result
    _set_in_motion(model.modulator)
    perturb(model.module)
    try:
        rounded = _separate_step(model, perturbed(given), target, present, own.sample, tracks)
    finally:
        restore()
    return allowing(result, _differences(model, rounded, separate))


def _differences(model: AGM, own: _Step, separate: _Step) -> dict[str, Any]:
    """How far a step is from that of the definition: kind -> where -> the difference."""
    masked, expected = own.masked, separate.masked
    scale = largest_of(expected)
    largest = max((largest_of(x) for x in separate.gradients.values() if x is not None), default=0.0)
    differences = [
        (_words(subset, model.modalities), difference(mine, its, scale))
        for subset, mine, its in zip(own.subsets, masked, expected, strict=True)
    ]
    return {
        "logits": {words: max(d for other, d in differences if other == words) for words, _ in differences},
        "gradients": {
            name: _gradient_difference(own.gradients[name], separate.gradients[name], _SMALL * largest)
            if name in own.gradients and name in separate.gradients
            else _IN_ONE
            for name in {**separate.gradients, **own.gradients}
        },
        "buffers": {
            name: difference(own.buffers[name], separate.buffers[name], _scale_of(name, separate.buffers))
            if name in own.buffers and name in separate.buffers
            else _IN_ONE
            for name in {**separate.buffers, **own.buffers}
        },
        "coefficients": {
            name: difference(kappa, expected_kappa, abs(float(expected_kappa)))
            for name, kappa, expected_kappa in zip(
                model.modalities, own.coefficients, separate.coefficients, strict=True
            )
        },
        "left": left_differences(own.left, separate.left),
    }


def _scale_of(name: str, buffers: Mapping[str, Tensor]) -> float:
    """What a buffer's differences are measured by: a running mean that is nothing but rounding by its variance."""
    module = name.rpartition(".")[0]
    beside = [x for other, x in buffers.items() if other.rpartition(".")[0] == module and x.is_floating_point()]
    own = largest_of(buffers[name])
    return max(own, _SMALL * max(map(largest_of, beside), default=0.0)) if buffers[name].is_floating_point() else own


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


def _lacks_numbers(value: object) -> bool:
    """Whether a tensor holds NaN or infinities; minus infinity rules something out and is none of these."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()) or value.is_meta:
        return False
    value = value.detach() if value.layout == torch.strided else value.detach().to_dense()
    return bool(value.isnan().any()) or (not value.is_complex() and bool(value.isposinf().any()))


def _lacking_numbers(model: AGM) -> Iterator[str]:
    """Buffers and attributes that hold NaN or infinities."""
    for name, value in (*model.module.named_buffers(), *left_behind(model.module).items()):
        if _lacks_numbers(value):
            yield name


def _not_finite(
    step: "_Step", subsets: Sequence[int], modalities: tuple[str, ...], before: Collection[str]
) -> Iterator[str]:
    """What holds NaN or infinities; minus infinity rules a class out and is none of these."""
    for subset, logits in zip(subsets, step.masked, strict=True):
        if bool((logits.isnan() | logits.isposinf()).any()):
            yield f"logits of {_words(subset, modalities)}"
    for name, gradient in step.gradients.items():
        if gradient is not None and not bool(gradient.isfinite().all()):
            yield f"gradient of {name}"
    for name, value in (*step.buffers.items(), *step.left.items()):
        if name not in before and _lacks_numbers(value):
            yield name


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
    leaves.update(_parameters(model))
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
    dtypes = _Dtypes()
    # In a compiled part graphs would break at every function that is watched.
    with nullcontext() if any(map(is_compiled, model.module.modules())) else dtypes:
        masked = separate_passes(
            model._passes, arguments, absent, subsets[:-1], tracks, lambda: left.update(left_behind(model.module))
        )
    model._passes.record.tensor_hooks |= dtypes.hooks
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
    leaves.update(_parameters(model))
    gradients = _gradients(rows, leaves, upstream)
    step = _step(model, sample, masked.detach(), leaves, gradients, state.coefficients, left)
    return replace(step, dtypes=dtypes.found)


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
    leaves = _parameters(model)
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


def _parameters(model: AGM) -> dict[str, Tensor]:
    """By name those that get a gradient, as they are now: a first forward may make some."""
    named = model.named_parameters()
    return {name.removeprefix("module."): parameter for name, parameter in named if parameter.requires_grad}


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


def _tolerance(model: nn.Module, given: Mapping[str, Any], masked: Tensor, inside: Collection[torch.dtype]) -> float:
    tensors = [masked, *model.parameters(), *(x for x in pytree.tree_leaves(given) if isinstance(x, Tensor))]
    dtypes = {*inside, *(tensor.dtype for tensor in tensors)}
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
