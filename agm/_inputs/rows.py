"""The batch of masked rows: for every proper subset a block of B rows, in the order of the bitmasks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agm._inputs.absent import is_rows
from agm._inputs.arguments import Arguments
from agm._inputs.samples import Samples
from agm._inputs.trees import leaves_of, mapped
from agm._inputs.whole import Whole

__all__ = [
    "EVERYWHERE",
    "aligned",
    "blocks",
    "check_others",
    "combine",
    "copied",
    "doubled",
    "first_rows",
    "lacking",
    "masked_arguments",
    "one_subset",
    "stacked",
    "tile",
    "whole_of",
    "with_whole",
]


EVERYWHERE = -1  # in the place of a modality's bit: arguments that no mask touches


def blocks(modality: int, subsets: Sequence[int]) -> list[bool]:
    """For each subset whether `modality` is present in it; what belongs to no modality (`EVERYWHERE`) always is."""
    if modality == EVERYWHERE:
        return [True] * len(subsets)
    return [bool(subset >> modality & 1) for subset in subsets]


def tile(absent: Tensor, rows: int, dim: int = 0) -> Tensor:
    """`absent` repeated along `dim` until it has `rows` rows there."""
    size = absent.shape[dim]
    if size == rows:
        return absent
    if size == 1:
        return absent.expand([rows if d == dim else -1 for d in range(absent.dim())])
    return absent.repeat([rows // size if d == dim else 1 for d in range(absent.dim())])


def aligned(absent: Any) -> Any:
    """Absent rows as the encoder gets them: all, if a leaf keeps those of its samples (a padding mask), else one."""
    if isinstance(absent, Tensor):
        return absent
    leaves = leaves_of(absent)
    own = [len(leaf) for leaf in leaves if isinstance(leaf, Samples)]
    count = max([1, *own, *(leaf.shape[0] for leaf in leaves if is_rows(leaf))])
    return mapped(lambda leaf: tile(leaf, count) if is_rows(leaf) else leaf, absent)


def stacked(present: Any, absent: Any) -> Any:
    """Present rows, then the absent ones: (B, ...) and (1 or B, ...) -> (B + 1 or 2 * B, ...)."""

    def stack(leaf: Any, row: Any) -> Any:
        if isinstance(leaf, Samples):
            return leaf.repeated(2)
        return torch.cat([leaf, row]) if is_rows(leaf) else leaf

    return mapped(stack, present, aligned(absent))


def copied(tree: Any) -> Any:
    """A pytree with its tensors cloned, so that whoever goes on in place with one leaves the other alone."""
    return mapped(_copied, tree)


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    return leaf.copied() if isinstance(leaf, (Samples, Whole)) else leaf


def first_rows(tree: Any, count: int, batch: int) -> Any:
    """Of a pytree whose leaves have something for each of `batch` samples what is of the first `count`."""

    def first(leaf: Any) -> Any:
        if isinstance(leaf, Samples):
            return leaf.taken([range(count)]) if len(leaf) == batch else leaf
        return leaf[:count] if is_rows(leaf) and leaf.shape[0] == batch else leaf

    return mapped(first, tree)


def doubled(tree: Any) -> tuple[Any, Any]:
    """A pytree to hand on and another to keep: what is done to the tensors of one does not reach the other's.

    What is handed on is a view, so that a hook on one of its tensors sees the gradient of that one alone; where there
    is none it is the tensor itself, since a view that was made without gradients could not be written to with them.
    """
    if isinstance(tree, Tensor):
        return tree.view_as(tree) if tree.requires_grad else tree, tree.clone()
    handed = mapped(lambda leaf: leaf.view_as(leaf) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf, tree)
    return handed, copied(tree)


def with_whole(whole: Tensor, present: Tensor, absent: Tensor) -> None:
    """Notes in the parts of a tensor, which no user has, that it has them one behind the other."""
    present._agm_whole = (whole, absent)  # type: ignore[attr-defined]


def whole_of(present: Tensor, absent: Tensor) -> Tensor | None:
    """The tensor whose parts these are, so that nothing need be put together, nor its gradient; None: there is none."""
    whole, behind = getattr(present, "_agm_whole", (None, None))
    return whole if behind is absent else None


def combine(present: Any, absent: Any, is_present: list[bool], part: range | None = None) -> Any:
    """Pytrees of (B, ...) and of (1 or B, ...) -> one of (blocks * B, ...), or of the rows in `part` of these."""

    def combined(row: Any, absent_row: Any) -> Any:
        if isinstance(row, Samples):
            return row.repeated(len(is_present), part)
        if not is_rows(row):
            return row
        absent_rows = tile(absent_row, row.shape[0])
        sources = [row if here else absent_rows for here in is_present]
        return torch.cat(sources if part is None else list(_within(sources, row.shape[0], part)))

    return mapped(combined, present, absent)


def lacking(present: Any, absent: Any, here: Tensor) -> Any:
    """Pytrees of (B, ...) and of (1 or B, ...): the latter's rows where `here` (B,) is False."""

    def replaced(row: Any, absent_row: Any) -> Any:
        if not is_rows(row):
            return row
        return torch.where(here.view(-1, *[1] * (row.dim() - 1)), row, absent_row)

    return mapped(replaced, present, absent)


def _within(sources: list[Tensor], batch: int, part: range) -> Iterator[Tensor]:
    """What of the blocks lies in `part`, block by block."""
    for index in range(part.start // batch, (part.stop - 1) // batch + 1):
        first, last = max(part.start - index * batch, 0), min(part.stop - index * batch, batch)
        yield sources[index][first:last]


def masked_arguments(
    arguments: Arguments, absent: Mapping[str, Any], subsets: Sequence[int], part: range | None = None
) -> Arguments:
    """The arguments of one call with the masked inputs of all `subsets`, or with the rows in `part` of them.

    What no mask touches is repeated for every block; see `check_others`.
    """
    inputs, others, rest, placed = arguments
    everywhere = [True] * len(subsets)
    return Arguments(
        {name: combine(x, absent[name], blocks(bit, subsets), part) for bit, (name, x) in enumerate(inputs.items())},
        combine(others, others, everywhere, part),
        combine(rest, rest, everywhere, part),
        placed,
    )


def one_subset(arguments: Arguments, absent: Mapping[str, Any], subset: int) -> Arguments:
    """The arguments of a pass of one subset by itself: all but the inputs of absent modalities as they are."""

    def in_place(row: Any, absent_row: Any) -> Any:
        return tile(absent_row, row.shape[0]) if is_rows(row) else absent_row

    inputs = {
        name: x if subset >> bit & 1 else mapped(in_place, x, absent[name])
        for bit, (name, x) in enumerate(arguments.inputs.items())
    }
    inputs, others, rest = copied((inputs, *arguments[1:3]))
    return Arguments(inputs, others, rest, arguments.placed)


def check_others(arguments: Arguments, batch: int) -> None:
    """That what is no modality has one row a sample, if it has rows.

    Raises:
        ValueError: it has not.
    """
    others = {f"args[{i}]": value for i, value in enumerate(arguments.others)} | arguments.rest
    for name, value in others.items():
        for leaf in leaves_of(value):
            if isinstance(leaf, Tensor) and leaf.is_nested:
                raise ValueError(
                    f"Expected argument `{name}`, which is no modality, to be dense, but got a nested tensor. Make one "
                    "tensor of it, with a mask or lengths beside it (to_padded_tensor)."
                )
            count = len(leaf) if isinstance(leaf, Samples) else leaf.shape[0] if is_rows(leaf) else batch
            if count != batch:
                got = tuple(leaf.shape) if is_rows(leaf) else f"{count} values"
                raise ValueError(
                    f"Expected argument `{name}`, which is no modality, to have one row for each of the {batch} "
                    f"samples, but got {got}. Bind what does not belong to samples beforehand, as a "
                    "buffer of the network or with functools.partial on its forward."
                )
