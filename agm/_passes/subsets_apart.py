"""Whether rows of several subsets may go through a network at once: by the definition each subset is a batch by itself.

A network may compute something of the whole batch in eval mode too, in functions that no layer announces: experts of a
limited capacity, attention or statistics across samples, a cut to the longest sequence. So a first batch compares what
a pass of all rows gives with what passes of one subset's rows give, and so does the first of each size, and any later
one that goes another way through the network: in which functions of torch run one after the other that did not before.
Where the same functions mix rows in some batches alone (a capacity that is reached, `torch.where`) that shows in a
later look, of which there is one whenever half as many steps have passed as before (`Record.doubting`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from agm._inputs.closeness import close_logits
from agm._lazy_rows.decision import some_subsets
from agm._lazy_rows.tensor import Rows
from agm._module_state.capture import is_capturing
from agm._module_state.structure import Structure
from agm._module_state.untouched import draw_on, untouched
from agm._passes.record import Record
from agm._passes.warned import warn
from agm.distributed import is_sharded

__all__ = ["apart_if_they_meet", "subset_parts"]

_Masked = TypeVar("_Masked")
_MET = "rows of a batch have met in the network's forward in eval mode"
_CUT = (
    "It seems that {met}, and with max_rows={most} fewer go through at a time than the {batch} samples of a batch: "
    "masked logits are not those of whole batches then. Set `max_rows` to the size of your batches, or compute within "
    "samples."
)
_NO_MEMORY = (
    "There was no memory to look whether rows of several subsets meet in the network (attention across samples, "
    "statistics of the batch); it is taken that they do not, and agm.verify tells on a smaller batch: {}"
)
_PATIENCE = 16  # steps, after which logits that are the same for all samples are taken for what they are


def apart_if_they_meet(
    masked: _Masked,
    rows: Rows,
    alone: Callable[[Sequence[range]], _Masked],
    structure: Structure | None,
    record: Record,
    most: int | None = None,
) -> _Masked:
    """Masked logits of all rows, or of each subset by itself where its rows have met those of others.

    Where fewer rows than a subset's may go through at a time, halves of these are compared with all, and a warning says
    what is wrong.

    Args:
        masked: of all rows at once.
        rows: these.
        alone: the rows of some subsets -> their masked logits, each in a pass of its own, from the same state of the
            network.
        structure: of the network, which has noted what has run in it; None: the step is compiled.
        record: of what is known of the network, on which nothing of a look stays.
        most: how many rows may go through at a time; None: any number.
    """
    if structure is None or (most is not None and most // max(rows.batch, 1) == 1):  # each subset is alone
        return masked
    is_cut = most is not None and most < rows.batch
    if is_cut and record.rows_meet:
        warn(_CUT.format(met=record.rows_meet, most=most, batch=rows.batch))
        return masked
    seen = record.ways_through(structure)
    size = (0, rows.batch)  # which may be that of a capacity
    if (size in seen and structure.ways <= seen) or not _can_look(rows, structure):
        return masked
    try:
        if most is not None and is_cut:
            meet: bool | None = _meet_in_halves(max(most, 2), alone, structure.root)
        else:
            meet = _meet(masked, rows, alone, structure.root)
    except (MemoryError, torch.OutOfMemoryError) as error:  # a look has its graph beside that of the masked passes
        warn(_NO_MEMORY.format(error))
        meet = False
    if meet:
        record.rows_meet = _MET
        if not is_cut:
            return alone(subset_parts(rows))
        warn(_CUT.format(met=_MET, most=most, batch=rows.batch))
    if meet is not None or record.steps > _PATIENCE:
        seen |= structure.ways | {size}
    return masked


def _meet(masked: object, rows: Rows, alone: Callable[[Sequence[range]], object], network: nn.Module) -> bool | None:
    """Whether a subset by itself comes to something else; None: it cannot be told."""
    parts, tells = subset_parts(rows), rows.batch == 1
    for index in _compared(rows):
        block = _block(masked, rows, index)
        if block is None:
            return None
        if not _is_alike(partial(alone, [parts[index]]), block.detach(), network):
            return True
        tells = tells or bool((block != block[:1]).any())
    return False if tells else None  # zeros, or behind a head that is zero yet


def _compared(rows: Rows) -> Sequence[int]:
    """Which subsets are: any two modalities are both present in one, both absent in another."""
    some = set(some_subsets(rows.modalities))
    found = {subset: index for index, subset in enumerate(rows.subsets)}
    chosen = [index for subset, index in found.items() if subset in some]
    return chosen if len(chosen) == len(some) else list(found.values())[: 2 * rows.modalities]


def _meet_in_halves(count: int, alone: Callable[[Sequence[range]], Any], network: nn.Module) -> bool:
    """Whether the first rows come to something else half by half."""
    with untouched(network, list(network.parameters())):
        block = alone([range(count)])
    if not isinstance(block, Tensor) or not block.dim() or len(block) != count:
        return False
    return not _is_alike(partial(alone, [range(count // 2), range(count // 2, count)]), block.detach(), network)


def subset_parts(rows: Rows) -> list[range]:
    """The rows of each subset, among all."""
    return [range(start, start + rows.batch) for start in range(0, len(rows), rows.batch)]


def _is_alike(alone: Callable[[], object], block: Tensor, network: nn.Module) -> bool:
    """Whether rows by themselves come to the same, as far as can be told.

    But for rounding, in a half type where one is used inside; and nothing can be told where random numbers are drawn.
    """
    with untouched(network, block):
        one = alone()
    if not isinstance(one, Tensor):
        return False
    one = one.detach()
    if close_logits(one, block):
        return True
    if one.dtype == torch.float32 and close_logits(one.bfloat16(), block.bfloat16()):
        with untouched(network, block), _Halves() as halves:
            alone()
        if halves.are_there:
            return True
    with untouched(network, block):
        draw_on(block.device)
        other = alone()
    return not (isinstance(other, Tensor) and close_logits(other.detach(), one))


class _Halves(TorchDispatchMode):
    """Tells whether something is computed in a half type, as autocast does."""

    are_there = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.are_there |= isinstance(output, Tensor) and output.dtype in (torch.float16, torch.bfloat16)
        return output


def _block(masked: object, rows: Rows, index: int) -> Tensor | None:
    """The masked logits of one subset; None: they have another shape."""
    if isinstance(masked, Mapping):  # a sum, of which few rows are known
        present, total = rows.subsets[index], None
        for bit, few in masked.items():
            term = few[: rows.batch] if present >> bit & 1 else few[rows.batch :].expand_as(few[: rows.batch])
            total = term if total is None else total + term
        return total
    if not isinstance(masked, Tensor) or not masked.dim() or len(masked) % len(rows.subsets):
        return None
    size = len(masked) // len(rows.subsets)
    return masked.narrow(0, index * size, size)


def _can_look(rows: Rows, structure: Structure) -> bool:
    """Whether there is something to compare, and no other process would wait for it in vain."""
    if not rows.batch or len(rows.subsets) < 2 or is_capturing():
        return False
    return not structure.chosen("cannot be looked at", lambda: _is_out_of_sight(structure.root))


def _is_out_of_sight(network: nn.Module) -> bool:
    return any(map(is_sharded, network.modules())) or any(weight.is_meta for weight in network.parameters())
