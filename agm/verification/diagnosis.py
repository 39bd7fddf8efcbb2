"""Why a training step is not what the definition says, and what to do about it."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.absent import batch_size, is_rows
from agm._inputs.arguments import Arguments
from agm._inputs.rows import copied, first_rows
from agm._inputs.samples import Samples
from agm._module_state.eval_mode import depends_on_mode
from agm.engine import AGM
from agm.verification.oracle import eval_mode

__all__ = ["causes"]

_BY_HAND = "compute the masked logits yourself, a pass a subset, and give them to agm.fused_modulate"


def causes(
    model: AGM,
    given: Mapping[str, Any],
    restore: Callable[[], None],
    is_right: Callable[[AGM], bool],
    tolerance: float,
) -> list[str]:
    """Advice in sentences, found by trial: two eval passes, half a batch, the model with other `passes` or `encoders`.

    Args:
        model: the one that is wrong.
        given: arguments of its network.
        restore: puts the network back to what it was.
        is_right: whether another model of the same network is.
        tolerance: relative difference that is taken for rounding.
    """
    if hidden := _unregistered(model.module):
        return [
            f"The network keeps modules where torch does not find them: {', '.join(hidden)}. "
            "They are in no state dict, no optimizer gets their parameters, and eval() does not reach them. Keep them "
            "in an nn.ModuleList or nn.ModuleDict."
        ]
    first, second, half, batch = _eval_passes(model, given)
    restore()
    if _differs(first, second, tolerance):
        return [
            "Two eval passes over the same batch differ: the network draws random numbers in eval mode, or an encoder "
            "keeps a state from call to call. Draw only `if self.training`, and start every call from the same state."
        ]
    if foreign := _of_no_sample(model, given, first, tolerance):
        restore()
        return [
            f"Argument `{foreign}` has a row for each of the {batch} samples, and is repeated for the rows of masked "
            "passes, but what forward makes of it does not belong to samples. Bind it beforehand, as a buffer of the "
            "network or with functools.partial on its forward."
        ]
    restore()
    mixes = len(half) < batch and _differs(first[: len(half)], half, tolerance)
    most = model._options.max_rows
    if mixes and most is not None and most < batch:
        return [_mixing(model, batch, is_right)]
    if model._options.passes != "two" and _is_right_with(model, model._options.encoders, is_right):
        return ["One pass of an encoder is not what two are: set passes='two'."]
    if advice := _other_encoders(model, is_right):
        return [advice]
    if mixes:
        return [_mixing(model, batch, is_right)]
    return [
        "No other way to run its masked passes is right for this network. If it depends on the values of its input or "
        f"on what ran before, {_BY_HAND}."
    ]


def _unregistered(network: nn.Module) -> list[str]:
    """Attributes of the network's modules that hold modules with a mode or parameters, which are none of its own."""
    known = set(network.modules())
    found = []
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or not isinstance(value, (list, tuple, dict, set)):
                continue
            held = pytree.tree_leaves(list(value) if isinstance(value, set) else value)
            if any(isinstance(leaf, nn.Module) and leaf not in known and _has_state(leaf) for leaf in held):
                found.append(f"{path}.{name}" if path else name)
    return found


def _has_state(module: nn.Module) -> bool:
    return bool(module.state_dict()) or any(map(depends_on_mode, module.modules()))


def _of_no_sample(model: AGM, given: Mapping[str, Any], whole: Tensor, tolerance: float) -> str | None:
    """An argument beside the modalities without which samples are apart: with all of it half a batch is as before."""
    binding = model._passes.binding
    arguments = binding.split((), given)
    batch = batch_size(arguments.inputs)
    count = batch // 2

    def logits(whole_name: str | None = None) -> Tensor | None:
        some = _first_samples(arguments, count, batch)
        if whole_name is not None:
            some = some._replace(rest={**some.rest, whole_name: copied(arguments.rest[whole_name])})
        try:
            with eval_mode(model.module):
                return model._passes.outputs.logits(binding.call(some)).detach()
        except Exception:  # of the network's own, which such a batch may cause
            return None

    rows = [name for name, x in arguments.rest.items() if any(map(_is_of_samples, pytree.tree_leaves(x)))]
    if not count or not rows:
        return None
    for name in rows:
        found = logits(name)
        if found is not None and len(found) == count and not _differs(whole[:count], found, tolerance):
            parted = logits()
            if parted is None or len(parted) != count or _differs(whole[:count], parted, tolerance):
                return name
    return None


def _is_of_samples(leaf: Any) -> bool:
    return is_rows(leaf) or isinstance(leaf, Samples)


def _first_samples(arguments: Arguments, count: int, batch: int) -> Arguments:
    """A copy of the arguments with the first samples alone: the network may write to what it is given."""
    inputs, others, rest = first_rows(copied(tuple(arguments[:3])), count, batch)
    return Arguments(inputs, others, rest, arguments.placed)


def _eval_passes(model: AGM, given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Logits of the batch in eval mode twice, those of its first half, and how many samples the batch has."""
    binding = model._passes.binding
    arguments = binding.split((), given)
    batch = batch_size(arguments.inputs)
    count = batch // 2

    def call(samples: int) -> Tensor:
        return model._passes.outputs.logits(binding.call(_first_samples(arguments, samples, batch))).detach()

    with eval_mode(model.module):
        first, second = (call(batch) for _ in range(2))
        try:
            half = call(count) if count else first
        except Exception:  # of the network's own, where something in it is made for so many samples
            half = first
    return first, second, half, batch


def _differs(left: Tensor, right: Tensor, tolerance: float) -> bool:
    left, right = left.double(), right.double()
    scale = float(left.nan_to_num(0.0, 0.0, 0.0).abs().max()) if left.numel() else 0.0
    return not torch.allclose(left, right, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _other_encoders(model: AGM, is_right: Callable[[AGM], bool]) -> str | None:
    """Advice to name other encoders, if that makes it right."""
    paths = _paths(model)
    own = not model._options.encoders  # the network's own `encoders` and `fuse`
    if not paths:
        return None
    if own and _is_right_with(model, paths, is_right):
        return (
            "`fuse` is not what the network's forward does with the features. Make forward return "
            f"fuse({{name: encoders[name](x)}}), or name the encoders by path: encoders={paths}."
        )
    for name in paths:
        others = {other: path for other, path in paths.items() if other != name}
        if others and _is_right_with(model, others, is_right):
            instead = f"name the others by path, encoders={others}" if own else f"leave `{name}` out of `encoders`"
            return (
                f"The encoder of `{name}` does not treat the samples that it is given apart and in their order. "
                f"Make it, or {instead}: its masked inputs then go through it as they are."
            )
    if not own and _is_right_with(model, None, is_right):
        return (
            "The network is right as one piece: leave `encoders` out, or change the encoders so that they treat "
            "samples apart and in their order."
        )
    return None


def _mixing(model: AGM, batch: int, is_right: Callable[[AGM], bool]) -> str:
    return (
        "In eval mode the logits of a sample depend on the other samples of its batch, so that subsets cannot share "
        f"one. Normalise and attend within samples, or {_separately(model, batch, is_right)}."
    )


def _separately(model: AGM, batch: int, is_right: Callable[[AGM], bool]) -> str:
    """How each subset gets a pass of its own."""
    if not _is_right_with(model, None, is_right, max_rows=batch):
        return _BY_HAND
    leave = "leave `encoders` out and " if model._options.encoders else ""
    return f"{leave}set `max_rows` to the size of your batches, all of one size: each subset then has a pass of its own"


def _paths(model: AGM) -> dict[str, str]:
    names = {module: path for path, module in model.module.named_modules()}
    encoders = model._passes.encoders()
    return {name: names[encoder] for name, encoder in encoders.items() if names.get(encoder)}


def _is_right_with(
    model: AGM, paths: Mapping[str, str] | None, is_right: Callable[[AGM], bool], max_rows: int | None = None
) -> bool:
    """Whether the same network is right with these encoders; one that is refused is not."""
    settings: Any = model.modulator
    network: nn.Module = model.module
    own = {field.name: getattr(model._options, field.name) for field in fields(model._options)}
    head = None if own["loss"] is None else own["head"]  # whether it adds up its modalities is not the question
    options = {**own, "encoders": paths, "max_rows": max_rows, "checkpoint": False, "passes": "two", "head": head}
    try:
        strength = {"alpha": settings.alpha, "max_gap": settings.max_gap, "floor": settings.floor}
        changed = AGM(network, process_group=False, target=model._target_name, **strength, **options)
        changed.modulator.ignore_index, changed.modulator.score = settings.ignore_index, settings.score
        return is_right(changed)
    except (RuntimeError, TypeError, ValueError):
        return False
