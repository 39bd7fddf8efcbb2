"""A pass a subset, of inputs that no masked rows can be made of."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from agm._inputs.arguments import Arguments
from agm._inputs.rows import copied, one_subset
from agm._lazy_rows.tensor import Rows
from agm._module_state.hooks import ForwardHooks

if TYPE_CHECKING:
    from agm._passes.masked_passes import MaskedPasses

__all__ = ["check_wholes", "one_by_one", "wholes_note"]


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


def one_by_one(
    passes: "MaskedPasses", arguments: Arguments, rows: Rows, absent: Mapping[str, Any], hooks: ForwardHooks | None
) -> tuple[Any, Tensor]:
    """The joint pass's output, and masked logits."""
    inputs, others, rest = copied(tuple(arguments[:3]))  # the joint pass may write to them
    kept = Arguments(inputs, others, rest, arguments.placed)
    joint = passes.joint_output(arguments, hooks)

    def call(part: range | None) -> Any:
        assert part is not None
        return passes.outputs.logits(passes.binding.call(one_subset(kept, absent, rows.subsets[part.start])))

    parts = [range(index, index + 1) for index in range(len(rows.subsets))]
    return joint, passes.chunks.run(passes.network, call, parts, hooks)


def wholes_note(passes: "MaskedPasses") -> tuple[str, ...]:
    """In words for a plan."""
    names = ", ".join(f"`{name}`" for name in sorted(passes.binding.wholes))
    return (f"Each subset has a pass of its own: no masked rows can be made of the input of {names}.",) if names else ()
