"""A self-check: what a model computes in a training step, against the whole network once for every subset."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._inputs.arguments import Arguments
from agm._inputs.rows import copied
from agm._passes.own_losses import kept_losses_note
from agm.engine import AGM
from agm.verification.comparison import compare
from agm.verification.diagnosis import causes
from agm.verification.leftovers import counted, tensors_in_attributes
from agm.verification.masks import MaskFinder
from agm.verification.masks import advice as mask_advice
from agm.verification.oracle import eval_mode
from agm.verification.result import Verification
from agm.verification.snapshot import preserved

__all__ = ["Verification", "verify"]

_FAR = 10.0  # how many times worse what is wrong is than what is right, and than the tolerance


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
    modules, the state of the modulation, and the generators of torch, numpy and Python are as before. What is drawn
    from an iterator in an attribute that cannot be copied (a generator of Python's) is gone. If something
    is wrong, further passes find out what. With drawn `subsets` the passes are of these, but of all where the
    fusion is a sum, whose responses are exact. Of a model with `loss` the logits are compared that it would return
    without. It needs the time and memory of 2**M passes of the network, so take a batch like those of training, but a
    small one, of samples that differ from one another.

    Args:
        model: in training mode, as it is trained. A window of epochs does not count, and alpha = 0, with which no
            gradient would reach the masked passes, is taken as 1.
        inputs: modality -> its input, as in `agm.masked_logits`.
        target: (B,) class indices, or what the model's `score` takes.
        arguments: other keyword arguments of the network's forward.
        present: (B, M) bool, which samples have which modalities; in "exact" mode only.
        tolerance: largest relative difference that is taken for rounding. By default it goes by the coarsest dtype
            among parameters, inputs, logits, and products in forward (autocast): 1e-8 for float64, 1e-3 for float32,
            5e-2 for float16, 1e-1 for bfloat16. Rounding alone stays an order below this in deep networks, and what is
            wrong is far above, for then a sample gets what belongs to another. Convolutions in TF32 may want 1e-2, or
            `double`. A difference that is larger is tolerated, and reported, where the definition itself changes as
            much when parameters and inputs are changed by rounding.
        double: check a float64 copy of the model, so that rounding cannot be taken for an error nor hide one.

    Returns:
        The differences; `ok` tells whether they are rounding, and `print` shows where they are largest and what to do.

    Raises:
        ValueError: the model is in eval mode, `tolerance` is not positive; as `model(...)`, which may refuse the
            network by itself.
        TypeError: `model` is not an `agm.AGM`, or cannot be copied or computed for `double`.
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
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"Expected argument `inputs` to be a mapping of the modalities to their inputs, but got "
            f"{type(inputs).__name__}. Give for example {{'audio': a, 'visual': v}}."
        )
    given = {**inputs, **(arguments or {})}
    if model._loss is not None:
        target = model._loss.shifted(target, model.modulator.ignore_index)
    if double:
        model, given = _double_copy(model), pytree.tree_map(_doubled, given)
    peers = model.modulator.peers
    kept = _preserved(model, peers.together)
    with torch.inference_mode(False), torch.enable_grad(), peers.apart(), _returning_logits(model), kept as restore:
        try:
            result = compare(model, given, target, present, restore, tolerance)
        except RuntimeError as error:
            if double and "dtype" in str(error):
                raise TypeError(_CASTS.format(error)) from error
            raise
        notes = model._passes.hook_notes()
        masks = (*(mask_advice(name) for name in sorted(_masks(model, given))), *notes)
        if losses := model._passes.kept_losses:
            masks = (*masks, kept_losses_note(losses))
        restore()
        if drawn := [name for name in counted(model.module) if result.left.get(name)]:
            return replace(result, advice=(_DRAWN.format(", ".join(f"`{name}`" for name in drawn)), *masks))
        if result.ok or result.advice:
            return replace(result, advice=(*result.advice, *masks))
        if result.worst <= result.tolerance:
            return replace(result, advice=(_NOT_FINITE, *masks))
        if result.worst < _FAR * result.tolerance and not double:
            near = "This is near the tolerance and may be rounding: agm.verify(..., double=True) will tell."
            return replace(result, advice=(near,))

        def is_right(changed: AGM) -> bool:
            with _returning_logits(changed), _preserved(changed) as restore_changed:
                other = compare(changed, given, target, present, restore_changed, tolerance)
            return other.ok and other.worst * _FAR < result.worst

        advice = causes(model, given, restore, is_right, result.tolerance)
    return replace(result, advice=(*advice, *masks))


_NOT_FINITE = (
    "The network itself comes to numbers that are not finite there. If these are rows in which a modality is absent, "
    "say what an absent input is (absent=), or leave its gradient out: absent_gradient=False."
)


_CASTS = (
    "Expected argument `model` to compute in float64 for double=True, but its forward casts to a dtype of its own "
    "(.float(), autocast): {}. Leave `double` out."
)


_DRAWN = (
    "The masked passes draw from {} as the joint pass does, and what is drawn from such an iterator (a generator) "
    "cannot be put back. Draw only `if self.training`, or keep a number, or an iterator that can be copied "
    "(itertools.count)."
)


@contextmanager
def _returning_logits(model: AGM) -> Iterator[None]:
    """Inside, a step that would end in a loss returns the logits that this is the loss of."""
    loss, model._loss = model._loss, None
    try:
        yield
    finally:
        model._loss = loss


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
    with eval_mode(model.module), finder:  # with gradients, as forward may take some itself
        model._passes.binding.call(arguments)
    return finder.found


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
