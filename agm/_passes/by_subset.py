"""Passes of one subset each, by the definition, of a network whose encoders are named by path.

Where rows of several subsets meet in one pass (attention across samples, experts of a limited capacity), each subset
is a batch of its own. What is asked of the encoders holds there too: in shared mode they answer for a present modality
with the features of the joint pass, and without a gradient of absent rows they answer for an absent one with constants.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from agm._inputs.absent import is_rows
from agm._inputs.arguments import Arguments
from agm._inputs.rows import copied, masked_arguments
from agm._inputs.trees import flattened, leaves_of, mapped, unflattened
from agm._lazy_rows.tensor import Rows
from agm._passes.absent_features import constant
from agm._passes.chunks import Chunks
from agm._passes.encoder_recording import Call, Recorder
from agm._passes.encoder_rows import EncoderRows, along, refusal
from agm._passes.masked_run import MaskedRun, called_instead
from agm._passes.record import Record

__all__ = ["is_known", "ordered", "subset_passes"]


def subset_passes(given: MaskedRun, rows: Rows, parts: Sequence[range]) -> Tensor:
    """Masked logits of the rows of some subsets, each in a pass of its own.

    Args:
        given: what the masked passes of this step are given.
        rows: of all subsets.
        parts: those of each subset that is wanted.
    """
    passes = given.passes
    few, others, rest, placed = given.arguments
    inputs = {name: mapped(lambda x: x[: rows.batch] if is_rows(x) else x, tree) for name, tree in few.items()}
    absent = {name: mapped(lambda x: x[rows.batch :] if is_rows(x) else x, tree) for name, tree in few.items()}
    arguments = Arguments(inputs, others, rest, placed)
    encoders = [(one, _bits(one, passes.record)) for one in given.recorders] if _ask(given) else []
    if given.structure is not None:
        for one, bits in encoders:
            passes.record.order[str(one.target)] = [one.target.names[bit] for bit in bits]

    def call(part: range | None) -> Any:
        assert part is not None
        own = Rows(rows.batch, rows.modalities, (rows.subsets[part.start // rows.batch],))
        answers = [_Answer(recorder, bits, own, given) for recorder, bits in encoders]
        with called_instead(answers, given.structure is not None):
            output = passes.binding.call(masked_arguments(arguments, absent, rows.subsets, part))
            logits = passes.outputs.logits(output)
        for answer in answers:
            answer.finish()
        return logits

    logits: Tensor = Chunks(head=passes.outputs.head).run(
        passes.network, call, list(parts), given.hooks, given.structure
    )
    return logits


class _Answer:
    """An encoder in the pass of one subset.

    Args:
        recorder: of the joint pass.
        bits: the modality of each of its calls.
        rows: of the subset.
        given: what the masked passes of this step are given.
    """

    def __init__(self, recorder: Recorder, bits: Sequence[int], rows: Rows, given: MaskedRun) -> None:
        self.recorder, self.target = recorder, recorder.target
        self.rows = rows
        self.given = given
        self.gradient = given.passes.absent_features.gradient
        self.bits = bits
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        index, self.count = self.count, self.count + 1
        if index >= len(self.recorder.calls):
            raise refusal(self.target.name, "is called more often in a subset's pass than in the joint pass")
        call, function = self.recorder.calls[index], self.recorder.function
        if self.recorder.is_written:  # it returns the very memory that it is given
            return function(*args, **kwargs)
        bit = self.bits[index]
        name = self.target.names[bit]
        is_present = bool(self.rows.subsets[0] >> bit & 1)
        here = None if self.given.here is None else self.given.here[name]
        if is_present and not self.recorder.shared:
            return function(*args, **kwargs)
        if is_present and here is None:
            return copied(call.output)
        kept = None if is_present else self.given.kept.get(name)
        if kept is not None:
            return self._in_place(kept, call, bit)
        own = self._absent(args, kwargs)
        return self._shared(own, call, index, here) if is_present and here is not None else own

    def _absent(self, args: Any, kwargs: Any) -> Any:
        """Features of what is given, as a modality has them where it is absent."""
        with nullcontext() if self.gradient else torch.no_grad():
            output = self.recorder.function(*args, **kwargs)
        if self.gradient or not any([weight.requires_grad for weight in self.target.owner.parameters()]):
            return output
        return constant(output)

    def _in_place(self, kept: Any, call: Call, bit: int) -> Any:
        """Features of one absent row, for each sample."""
        rows = EncoderRows(self.target.names[bit], bit, self.rows, per_sample=False, shared=True)
        leaves, structure = flattened(kept)
        sizes, joint = call.output_sizes, leaves_of(call.output)
        placed = [rows.expand(*one, deferred=False, gradient=False) for one in zip(leaves, sizes, joint, strict=True)]
        return constant(unflattened(placed, structure))

    def _shared(self, own: Any, call: Call, index: int, here: Tensor) -> Any:
        """Features of the joint pass for the samples that have the modality, and their own for the others."""
        leaves, structure = flattened(own)
        joint, dims = leaves_of(call.output), self.given.passes.record.dims[str(self.target)][index]

        def chosen(leaf: Any, shared: Any, dim: int | None) -> Any:
            if dim is None:
                return leaf
            return torch.where(along(leaf, dim, here, leaf.shape[dim] // len(here)), shared, leaf)

        return unflattened([chosen(*one) for one in zip(leaves, joint, dims, strict=True)], structure)

    def finish(self) -> None:
        """That it was called as often as in the joint pass.

        Raises:
            ValueError: it was not.
        """
        if self.count < len(self.recorder.calls):
            raise refusal(self.target.name, "is called less often in a subset's pass than in the joint pass")


def is_known(given: MaskedRun) -> bool:
    """Whether there is what passes of one subset ask for, or else a pass of all rows has to show it.

    That is which modality each call of an encoder of several encodes, and where some samples lack a modality, where the
    samples lie in features.
    """
    if not _ask(given):
        return True
    return all([_direct(one) is not None and _dims(one, given) is not None for one in given.recorders])


def ordered(given: MaskedRun) -> set[str]:
    """The modalities of encoders of several of whose calls a pass of all rows has to show the order, in every step."""
    return {name for one in given.recorders if _direct(one) is None for name in one.target.names.values()}


def _ask(given: MaskedRun) -> bool:
    """Whether more is asked of encoders than to run."""
    return given.passes.shared or not given.passes.absent_features.gradient


def _direct(recorder: Recorder) -> Sequence[int] | None:
    """The modality of each call of an encoder, by its bit, where its input shows that or there is one."""
    names, calls = recorder.target.names, recorder.calls
    found = [next(iter(names)) if len(names) == 1 else call.direct for call in calls]
    return None if any([bit not in names for bit in found]) else [bit for bit in found if bit is not None]


def _dims(recorder: Recorder, given: MaskedRun) -> Sequence[Sequence[int | None]] | None:
    """Where the samples lie in what an encoder returned in each of its calls, leaf by leaf; None: nobody knows it."""
    if given.here is None:
        return ()
    found = given.passes.record.dims.get(str(recorder.target), [])
    return found if len(found) == len(recorder.calls) else None


def _bits(recorder: Recorder, record: Record) -> Sequence[int]:
    """The modality of each call of an encoder, by its bit.

    Raises:
        ValueError: nobody knows it.
    """
    if (direct := _direct(recorder)) is not None:
        return direct
    order = record.order.get(str(recorder.target), [])
    if len(order) != len(recorder.calls):
        raise ValueError(
            f"Expected {recorder.target} to be given what forward is given where a step is compiled and rows of a "
            "batch meet, but forward computes what it hands on. Take one training step with the model as it is before "
            "it is compiled, and call the encoder as often in each."
        )
    by_name = {name: bit for bit, name in recorder.target.names.items()}
    return [by_name[name] for name in order]
