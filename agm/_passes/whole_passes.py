"""The passes of a network of one piece: all masked inputs go through the whole of it."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from agm._inputs.arguments import Arguments
from agm._inputs.rows import check_others, copied, masked_arguments, one_subset
from agm._lazy_rows.tensor import Rows
from agm._module_state.eval_mode import evaluation, mixes_samples, mode_dependent_layers
from agm._module_state.hooks import ForwardHooks
from agm._module_state.structure import Structure
from agm._one_pass.joint_call import versions
from agm._passes.chunks import note_rows
from agm._passes.subsets_apart import apart_if_they_meet

if TYPE_CHECKING:
    from agm._passes.masked_passes import MaskedPasses

__all__ = ["check_wholes", "whole_passes", "wholes_note"]


def check_wholes(passes: "MaskedPasses", present: Tensor | None) -> None:
    """That inputs without a row a sample can be made absent, in so far as a step asks for it.

    Raises:
        ValueError: they cannot.
    """
    names = ", ".join(f"`{name}`" for name in sorted(passes.binding.wholes))
    if not names:
        return
    if passes.encoders():
        raise ValueError(
            f"Expected the input of {names} to have a row for each sample, since encoders are known and are given "
            "rows, but it has not. Make a dense batch of it, with a mask beside it, or leave `encoders` out: the "
            "callable in `absent` then makes it absent as a whole."
        )
    if present is not None:
        raise ValueError(
            f"Expected argument `present` to be None where the input of {names} has no row for each sample, but got a "
            "tensor: the callable in `absent` makes it absent for all samples at once. Make a dense batch of it, with "
            "a mask beside it."
        )
    most = passes.chunks.max_rows
    if most is not None:
        raise ValueError(
            f"Expected argument `max_rows` to be None where the input of {names} has no row for each sample, but got "
            f"{most}: each subset has a pass of its own, which cannot be cut."
        )


def whole_passes(
    passes: "MaskedPasses",
    arguments: Arguments,
    rows: Rows,
    absent: Mapping[str, Any],
    here: Mapping[str, Tensor] | None = None,
    hooks: ForwardHooks | None = None,
    structure: Structure | None = None,
) -> tuple[Any, Tensor]:
    """The joint pass's output, and masked logits.

    Args:
        passes: whose network it is.
        arguments, rows, absent, here, hooks, structure: as `FactorisedPasses` takes them.

    Raises:
        ValueError: features are to be shared, and some layers depend on the mode.
    """
    network, batch, subsets = passes.network, rows.batch, rows.subsets
    if passes.shared and (layers := mode_dependent_layers(network)):
        raise ValueError(
            "Expected `encoders` with masked='shared': there are no features to share in a network that is one "
            f"piece, and some of its layers depend on the mode ({', '.join(layers[:5])}). Name the encoders, or "
            "use masked='exact'."
        )
    by_subset = len(passes.binding.wholes) > 0  # no masked rows can be made of some inputs
    if not by_subset:
        check_others(arguments, batch)
    record, chunks = passes.record, passes.chunks
    mixes = mixes_samples(network) if structure is None else structure.mixes_samples()
    meet = record.rows_meet if chunks.have_room(batch) else ""  # else as many rows at a time as may be
    in_parts = by_subset or bool(chunks) or mixes or len(meet) > 0
    # Copies, since the network may write to its inputs in the joint pass, after which rows of some subsets are built.
    looks = structure is not None and not record.ways_through(structure)
    keeps = in_parts or looks or record.writes_inputs
    inputs, others, rest = copied(tuple(arguments[:3])) if keeps else arguments[:3]
    kept, kept_absent = Arguments(inputs, others, rest, arguments.placed), copied(absent) if keeps else absent
    at_once = None
    parts: list[range] | list[None] = []
    if by_subset:
        parts = [range(index, index + 1) for index in range(len(subsets))]
    elif in_parts:
        parts = chunks.parts(network, batch, len(subsets), meet)
    else:
        at_once = masked_arguments(arguments, absent, subsets)
    before = versions(arguments[:3]) if looks else None
    joint = _joint(passes, arguments, hooks)
    if looks:
        record.writes_inputs |= before != versions(arguments[:3])
    left = passes.structure()
    if left is not None:
        left.ways.clear()

    def call(part: range | None) -> Any:
        if by_subset and part is not None:
            masked = one_subset(kept, kept_absent, subsets[part.start])
        else:
            masked = masked_arguments(kept, kept_absent, subsets, part)
        return passes.outputs.logits(passes.binding.call(masked))

    if at_once is not None:
        with evaluation(network, hooks, left):
            try:
                masked = passes.outputs.logits(passes.binding.call(at_once))
            except RuntimeError as error:
                note_rows(error, network, len(rows), batch)
                raise
    else:
        masked = chunks.run(network, call, parts, hooks, left)
        if by_subset or mixes or meet:
            return joint, masked

    def alone(parts: Sequence[range]) -> Any:
        return chunks.run(network, call, list(parts), hooks, left)

    return joint, apart_if_they_meet(masked, rows, alone, left, record, chunks.max_rows)


def _joint(passes: "MaskedPasses", arguments: Arguments, hooks: ForwardHooks | None) -> Any:
    with nullcontext() if hooks is None or not hooks.are_there else hooks.watched():
        output = passes.binding.call(arguments)
    passes.outputs.logits(output)  # refused here, where it is the joint pass's
    return output


def wholes_note(passes: "MaskedPasses") -> tuple[str, ...]:
    """In words for a plan."""
    names = ", ".join(f"`{name}`" for name in sorted(passes.binding.wholes))
    return (f"Each subset has a pass of its own: no masked rows can be made of the input of {names}.",) if names else ()
