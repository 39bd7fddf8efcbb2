"""A self-check: what a model computes in a training step, against the whole network once for every subset."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from agm.shapley.sampling import SubsetSample
from agm.shapley.weights import subset_weights
from agm.verification.diagnosis import causes
from agm.verification.leftovers import differences as left_differences
from agm.verification.leftovers import left_behind, tensors_in_attributes
from agm.verification.masks import MaskFinder
from agm.verification.masks import advice as mask_advice
from agm.verification.oracle import eval_mode, separate_passes
from agm.verification.snapshot import preserved

__all__ = ["Verification", "verify"]

_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_SMALL = 0.1  # a gradient below this part of the largest one may be nothing but rounding (a bias before batch norm)
_FAR = 10.0  # how many times worse what is wrong is than what is right, and than the tolerance


@dataclass(frozen=True)
class Verification:
    """How far a model's training step is from the whole network once for every subset; `print` it.

    Attributes:
        masked: "exact" or "shared", the mode of the model.
        logits: subset in words -> largest difference of its logits, over the largest logit of all.
        gradients: parameter or input -> largest difference of its gradient, over the largest element of the gradient,
            or over a tenth of the largest one of all if that is more.
        buffers: buffer -> largest difference after the step, over its largest element.
        coefficients: modality -> difference of its modulation coefficient, over the coefficient.
        left: attribute of a module, or parameter -> how far what the step left there is from what one joint pass
            leaves, over its largest element; infinite for something of another kind.
        tolerance: what none of them may exceed.
        not_finite: what of the definition holds NaN or infinities, in words: the network itself is at fault.
        advice: what is wrong and what to do, if something is, and what is worth knowing.
    """

    masked: str
    logits: Mapping[str, float]
    gradients: Mapping[str, float]
    buffers: Mapping[str, float]
    coefficients: Mapping[str, float]
    tolerance: float
    advice: tuple[str, ...] = ()
    left: Mapping[str, float] = field(default_factory=dict)
    not_finite: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no difference exceeds the tolerance, and every number is finite."""
        return self.worst <= self.tolerance and not self.not_finite

    @property
    def worst(self) -> float:
        """The largest difference of all."""
        return max(value for figures in self._kinds().values() for value in figures.values())

    def _kinds(self) -> dict[str, Mapping[str, float]]:
        return {
            "logits": self.logits,
            "gradients": self.gradients,
            "buffers": self.buffers,
            "coefficients": self.coefficients,
            "left behind": self.left,
        }

    def _wrong(self, kind: str) -> list[str]:
        """Where the differences of a kind are too large, the largest first."""
        figures = self._kinds()[kind]
        wrong = [where for where, value in figures.items() if not value <= self.tolerance]
        return sorted(wrong, key=lambda where: -figures[where])

    def __str__(self) -> str:
        text = [
            f"The training step (masked={self.masked!r}) {'equals' if self.ok else 'is not'} one pass of the whole "
            f"network for each of the {len(self.logits)} subsets, at tolerance {self.tolerance:.0e}."
        ]
        text += [f"  not finite    {where}" for where in self.not_finite]
        for kind, figures in self._kinds().items():
            if not figures:
                continue
            wrong = self._wrong(kind)
            where = wrong[0] if wrong else max(figures, key=lambda name: figures[name])
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            mark = "too large:" if wrong else "largest:"
            text.append(f"  {kind:<12}  {figures[where]:.1e}  {mark} {where}{others}")
        return "\n".join([*text, *self.advice])


def verify(
    model: AGM,
    inputs: Mapping[str, Any],
    target: Tensor,
    *,
    arguments: Mapping[str, Any] | None = None,
    present: Tensor | None = None,
    tolerance: float | None = None,
    double: bool = False,
) -> Verification:
    """Compares one training step of `model` with the definition: 2**M - 1 passes of the whole network, one by one.

    The library answers for a subset with features that it has computed once, and sends all subsets through the rest
    of the network as one batch. That is right for a network whose encoders and fusion treat samples apart, draw no
    random numbers in eval mode and keep no state from call to call. This checks it, once and on one batch: the logits
    of every subset, the gradient of the modulated loss in every parameter and floating input, the buffers (running
    statistics) after the step, the modulation coefficients, and what forward leaves in attributes and in parameters
    that it writes to, which must be what one joint pass leaves. NaN and infinities are not ok. The loss is the mean of
    what the model scores by (cross-entropy, by default), or of the squared logits where that is a function of the
    user's.

    The definition in "exact" mode is a joint pass in the network's mode, then a pass in eval mode for every other
    subset; in "shared" mode the encoders of present modalities answer in those passes with what they returned in the
    joint pass, and the rest of the network runs by itself for each subset. The coefficients come from the reference
    backend. Both start from the same random numbers.

    Where several processes train together each verifies by itself, with coefficients of its own batch; but layers that
    exchange statistics (SyncBatchNorm) wait for the others, which must then verify at the same time.

    Nothing remains of it, also if something raises: parameters, gradients, buffers, attributes and modes of all
    modules, the state of the modulation, and the generators of torch, numpy and Python are as before. If something
    is wrong, further passes find out what. With drawn `subsets` the passes are of these, but of all where the
    fusion is a sum, whose responses are exact. It needs the time and memory of 2**M passes of the network, so take a
    batch like those of training, but a small one, of samples that differ from one another.

    Args:
        model: in training mode, as it is trained. A window of epochs does not count, and alpha = 0, with which no
            gradient would reach the masked passes, is taken as 1.
        inputs: modality -> its input, as in `agm.masked_logits`.
        target: (B,) class indices, or what the model's `score` takes.
        arguments: other keyword arguments of the network's forward.
        present: (B, M) bool, which samples have which modalities; in "exact" mode only.
        tolerance: largest relative difference that is taken for rounding. By default it goes by the coarsest dtype
            among parameters, inputs, logits and autocast: 1e-8 for float64, 1e-3 for float32, 5e-2 for float16, 1e-1
            for bfloat16. Rounding alone stays an order below this in deep networks, and what is wrong is far above,
            for then a sample gets what belongs to another. Convolutions in TF32 may want 1e-2, or `double`.
        double: check a float64 copy of the model, so that rounding cannot be taken for an error nor hide one.

    Returns:
        The differences; `ok` tells whether they are rounding, and `print` shows where they are largest and what to do.

    Raises:
        ValueError: the model is in eval mode, `tolerance` is not positive; as `model(...)`, which may refuse the
            network by itself.
        TypeError: `model` is not an `agm.AGM`, or cannot be copied for `double`.
    """
    if not isinstance(model, AGM):
        raise TypeError(
            f"Expected argument `model` to be an agm.AGM, but got {type(model).__name__}. Of a compiled or distributed "
            "model give what it wraps."
        )
    if not model.training:
        raise ValueError("Expected argument `model` to be in training mode, but it is in eval mode: model.train().")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"Expected argument `tolerance` to be positive, but got {tolerance!r}.")
    if present is not None and model._passes.shared:
        raise ValueError(
            "Expected argument `present` to be None with masked='shared', but got a tensor: what the joint pass made "
            "of a lacking input is not shared. Verify with samples that have all modalities."
        )
    given = {**inputs, **(arguments or {})}
    if double:
        model, given = _double_copy(model), pytree.tree_map(_doubled, given)
    peers = model.modulator.peers
    kept = _preserved(model, peers.together)
    with torch.inference_mode(False), torch.enable_grad(), peers.apart(), kept as restore:
        result = _compare(model, given, target, present, restore, tolerance)
        masks = tuple(mask_advice(name) for name in sorted(_masks(model, given)))
        restore()
        if result.ok:
            return replace(result, advice=masks)
        if result.worst <= result.tolerance:
            return replace(result, advice=(_NOT_FINITE, *masks))
        if result.worst < _FAR * result.tolerance and not double:
            near = "This is near the tolerance and may be rounding: agm.verify(..., double=True) will tell."
            return replace(result, advice=(near,))

        def is_right(changed: AGM) -> bool:
            with _preserved(changed) as restore_changed:
                other = _compare(changed, given, target, present, restore_changed, tolerance)
            return other.ok and other.worst * _FAR < result.worst

        advice = causes(model, given, restore, is_right, result.tolerance)
    return replace(result, advice=(*advice, *masks))


_NOT_FINITE = (
    "The network itself comes to numbers that are not finite there. If these are rows in which a modality is absent, "
    "say what an absent input is (absent=), or leave its gradient out: absent_gradient=False."
)


@contextmanager
def _preserved(model: AGM, together: bool = False) -> Iterator[Callable[[], None]]:
    """`preserved`, and what the model keeps from step to step, which a step by itself begins without."""
    kept, record = model._passes.absent_features, model._passes.record
    state, known = kept.state(), copy.deepcopy(vars(record))
    with preserved(model) as put_back:

        def restore() -> None:
            put_back()
            kept.load({"steps": 0, "kept": {}})

        kept.load({"steps": 0, "kept": {}})
        try:
            yield restore
        finally:
            kept.load(state)
            if together:  # what one process has found out by itself the others would still look for, with it
                vars(record).update(known)


def _masks(model: AGM, given: Mapping[str, Any]) -> set[str]:
    """Modalities whose values forward compares, and which are zeros where they are absent."""
    arguments = model._passes.binding.split((), given)
    inputs, others, rest = copied(tuple(arguments[:3]))  # forward may write to them
    arguments = Arguments(inputs, others, rest, arguments.placed)
    plain = {name: x for name, x in inputs.items() if model._passes.absent.get(name) is None}
    finder = MaskFinder(plain)
    with torch.no_grad(), eval_mode(model.module), finder:
        model._passes.binding.call(arguments)
    return finder.found


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


def _compare(
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
    scale = _largest(expected)
    largest = max((_largest(x) for x in separate.gradients.values() if x is not None), default=0.0)
    differences = [
        (_words(subset, model.modalities), _difference(mine, its, scale))
        for subset, mine, its in zip(own.subsets, masked, expected, strict=True)
    ]
    return Verification(
        masked=model._options.masked,
        logits={words: max(d for other, d in differences if other == words) for words, _ in differences},
        gradients={
            name: _gradient_difference(own.gradients[name], x, _SMALL * largest)
            for name, x in separate.gradients.items()
        },
        buffers={name: _difference(own.buffers[name], x, _largest(x)) for name, x in separate.buffers.items()},
        coefficients={
            name: _difference(kappa, expected_kappa, abs(float(expected_kappa)))
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


def _double_copy(model: AGM) -> AGM:
    try:
        # What hangs in a graph cannot be copied: a copy of its values stands in for it.
        memo = {id(tensor): tensor.detach().clone() for tensor in tensors_in_attributes(model)}
        return copy.deepcopy(model, memo).double()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"Expected argument `model` to be one that copy.deepcopy can copy, for double=True, but got: {error} Leave "
            "`double` out, or make the network float64 yourself."
        ) from error


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _tolerance(model: nn.Module, given: Mapping[str, Any], masked: Tensor) -> float:
    tensors = [masked, *model.parameters(), *(x for x in pytree.tree_leaves(given) if isinstance(x, Tensor))]
    dtypes = {tensor.dtype for tensor in tensors}
    device = masked.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(_TOLERANCES.get(dtype, 0.0) for dtype in dtypes)


def _words(subset: int, modalities: tuple[str, ...]) -> str:
    names = [name for bit, name in enumerate(modalities) if subset >> bit & 1]
    return " + ".join(names) + (" (joint)" if len(names) == len(modalities) else "")


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach().double().nan_to_num(0.0, 0.0, 0.0).abs()
    return float(finite.max()) if finite.numel() else 0.0


def _difference(got: Tensor, expected: Tensor, scale: float) -> float:
    """Largest difference over `scale`; equal infinities are no difference, and a NaN on one side an infinite one."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach().double(), expected.detach().double()
    same = (got == expected) | (got.isnan() & expected.isnan())
    absolute = (got - expected).abs().masked_fill(same, 0.0).nan_to_num(float("inf"))
    largest = float(absolute.max()) if absolute.numel() else 0.0
    return largest / scale if scale and largest else (float("inf") if largest else 0.0)


def _gradient_difference(got: Tensor | None, expected: Tensor | None, small: float) -> float:
    """What has no gradient has a zero one."""
    present = expected if expected is not None else got
    if present is None:
        return 0.0
    got, expected = (torch.zeros_like(present) if x is None else x for x in (got, expected))
    return _difference(got, expected, max(_largest(expected), small))
