"""The calls of an encoder that is named by path, answered for all rows in the masked pass."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._inputs.absent import is_opaque, is_rows
from agm._inputs.closeness import close
from agm._inputs.rows import EVERYWHERE
from agm._inputs.samples import Samples, is_listed
from agm._inputs.trees import flattened, leaves_of, mapped, unflattened
from agm._lazy_rows.tensor import CannotDefer, Deferred, Rows, written
from agm._module_state.checkpoints import check_not_reentrant, reentrant_checkpoint
from agm._module_state.untouched import untouched
from agm._one_pass.known import Known
from agm._passes.absent_features import AbsentFeatures
from agm._passes.encoder_counts import EncoderCounts
from agm._passes.encoder_recording import Call, Handed, Recorder
from agm._passes.encoder_rows import EncoderRows, refusal, sample_dims
from agm._passes.encoder_sources import Source, behind, dim_of, known_features, mixed
from agm._passes.origins import Origins
from agm._passes.parted_features import at_once, rows_meet

__all__ = ["Answer", "KnownCall", "NeedsOrigins"]

_OTHER_STRUCTURE = (
    "returns another structure in the masked pass than in the joint pass. Of a list with a tensor for each sample "
    "(LLaVA's get_image_features) name what returns one tensor of all samples (its vision_tower)"
)


class NeedsOrigins(RuntimeError):
    """An encoder is given rows of which it has to be known what they were computed from."""


class KnownCall(NamedTuple):
    """What an earlier step has found out about a call of an encoder.

    Attributes:
        name: its modality.
        all_rows: whether it is given rows that others went into.
    """

    name: str
    all_rows: bool


class Answer:
    """Encodes present and absent rows only in the masked pass, and answers for all.

    What it is given decides call by call: rows of its own modality, as forward was given them or computed from them
    alone, are encoded once where it is present and once where it is absent. Rows that others went into are encoded as
    they are, all of them.

    Args:
        recorder: of the joint pass.
        rows: of the masked pass.
        handed: what forward is given in it.
        here: modality -> (B,), the samples that have it, if what the others have is not to be shared.
        shares: bits of the modalities whose joint features may serve the present rows.
        mixes: whether an encoder puts rows together, so that none may be added.
        extra_rows: whether forward has other arguments with a row a sample.
        origins: what tensors were computed from; None: nobody follows that.
        other_rows: modalities whose encoder was given other rows in a masked pass than in the joint pass, though as far
            as one could see it was given its input.
        known: in a compiled pass, what an eager step has found out about each call; None: the pass is not compiled.
        one_pass: what is known of encoders in which rows may meet.
        absent_features: of rows in which a modality is absent.
        check: whether to look at the rows that are picked.
        deferred: whether features are handed on as deferred rows.
        watches: whether it may be seen on which ways rows go through the encoder.
    """

    def __init__(
        self,
        recorder: Recorder,
        rows: Rows,
        handed: Handed,
        here: Mapping[str, Tensor] | None,
        shares: frozenset[int],
        *,
        mixes: bool,
        extra_rows: bool,
        origins: Origins | None,
        other_rows: Collection[str],
        known: Sequence[KnownCall] | None,
        one_pass: Known,
        absent_features: AbsentFeatures,
        check: bool,
        deferred: bool,
        watches: Callable[[], bool],
    ) -> None:
        self.recorder = recorder
        self.target = recorder.target
        self.rows = rows
        self.handed = handed
        self.here = here
        self.shares = shares
        self.mixes = mixes
        self.extra_rows = extra_rows
        self.origins = origins
        self.check = check
        self.deferred = deferred
        self.watches = watches
        self.pending = list(reversed(recorder.calls))
        self.all_rows: list[str] = []  # modalities of which all rows were encoded
        self.other_rows: set[str] = set(other_rows)
        self.known = known
        self.one_pass = one_pass
        self.absent_features = absent_features
        self.order: list[str] = []
        self.absent_rows: dict[str, tuple[int, int]] = {}  # modality -> how many were encoded, in batches and beside
        self.counts = EncoderCounts() if len(recorder.calls) > 1 else None
        self.kept: dict[str, Any] = {}  # modality -> features of its absent row that serve several steps
        self.dims: list[list[int | None]] = []  # of the samples in each call's features, where some lack a modality

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.deferred and not torch.is_grad_enabled() and reentrant_checkpoint() is not None:
            raise CannotDefer("an encoder is called by a reentrant checkpoint")
        if not self.pending:
            raise refusal(self.target.name, "is called more often in the masked pass than in the joint pass")
        call = self.pending.pop()
        if self.recorder.is_written:
            return self._as_given(call, args, kwargs)
        if self.deferred and len(args) == 1 and not kwargs and (few := self._at_once(call, args[0])) is not None:
            return few
        leaves, structure = self._leaves("takes", (args, kwargs))
        new = [is_rows(leaf) and size is None for leaf, size in zip(leaves, call.input_sizes, strict=False)]
        if len(leaves) != len(call.input_sizes) or any(new):
            raise refusal(
                self.target.name,
                "takes other arguments in the masked pass than in the joint pass (a hidden state that an earlier call "
                "has left has the rows of that one: leave `encoders` out, and set `max_rows` to the size of the batch)",
            )
        sources = [Source.of(leaf, size, self.handed) for leaf, size in zip(leaves, call.input_sizes, strict=True)]
        if self.known or (self.known is not None and any(source.is_unknown for source in sources)):
            return self._as_known(self.known, call, leaves, structure, sources)
        bits = self._bits(leaves, sources)
        own = bits.intersection(self.target.names)
        if len(own) != 1:
            if self.rows.batch and not bits:
                raise refusal(self.target.name, "takes no tensor that grows with the batch")
            return self._all(call, leaves, structure, None)
        bit = next(iter(own))
        self.order.append(self.target.names[bit])
        if bits - own - {EVERYWHERE}:
            return self._all(call, leaves, structure, bit)
        return self._few(call, leaves, structure, sources, bit)

    def _as_given(self, call: Call, args: Any, kwargs: Any) -> Any:
        """Encodes every row, and returns the very memory that it is given, to which forward then writes."""
        if self.deferred:
            raise CannotDefer("an encoder returns what it is given, to which forward writes")
        names = self.target.names
        own = None if call.direct is None else names.get(call.direct)
        name = own or next(iter(names.values()))
        self.order.append(name)
        self.all_rows.append(name)
        if self.counts is not None:
            self.counts.add(name, len(self.rows.subsets))
        self.dims.append([])
        return self.recorder.function(*args, **kwargs)

    def _at_once(self, call: Call, given: Any) -> Any:
        """Deferred features that are known from the joint pass, of a call with a modality's deferred input as it is.

        None, where there is more to be seen to.
        """
        if self.check or self.here is not None or self.extra_rows or self.origins is not None:
            return None
        found = self.handed.find(given)
        if found is None or found[0] != call.direct or len(self.recorder.calls) != 1:
            return None
        (bit, few), name = found, self.target.names.get(found[0])
        if name is None or few is None or name in self.other_rows or bit not in self.shares:
            return None
        if not (self.recorder.shared or call.is_whole):
            return None
        with torch._C.DisableTorchFunction():  # of plain tensors, which no watch around the pass need see
            features = self._features(name, call, few)
            if features is None:
                return None
            self.order.append(name)
            self.absent_rows[name] = (0, 1)
            return Deferred.of(self.rows, bit, features)

    def _features(self, name: str, call: Call, few: Tensor) -> Tensor | None:
        """Those of the joint pass, and behind them those of one absent row; None: they are something else."""
        batch, kept = self.rows.batch, self.absent_features
        if batch < 2 or few.shape[0] != batch + 1:
            return None
        features = call.few
        if features is None:
            absent = kept.find(name, [few[batch:]]) if self.recorder.shared else None
            if type(absent) is not Tensor or type(call.output) is not Tensor or not absent.dim():
                return None
            if absent.shape[0] != 1 or call.output.shape != (batch, *absent.shape[1:]):
                return None
            self.kept[name] = absent
            return torch.cat([call.output, absent])
        if type(features) is not Tensor or features.shape[0] != batch + 1:
            return None
        if kept.gradient:
            return features
        if self.recorder.shared:
            kept.keep(name, [few[batch:]], features[batch:])
        return torch.cat([features[:batch], features[batch:].detach()])

    def _as_known(
        self, known: Sequence[KnownCall], call: Call, leaves: list[Any], structure: Any, sources: Sequence["Source"]
    ) -> Any:
        """Answers a compiled call: by what an eager step has found out, since a graph does not show what rows are."""
        index = len(self.recorder.calls) - len(self.pending) - 1
        if index >= len(known):
            if self.recorder.shared or not self.absent_features.gradient:
                raise ValueError(
                    f"Expected {self.target} to be given what forward is given where a step is compiled, but forward "
                    "computes what it hands on, and which rows these are only an eager step can see. Take one training "
                    "step with the model as it is before it is compiled, on two samples or more."
                )
            return self._all(call, leaves, structure, None)
        bit = next(bit for bit, name in self.target.names.items() if name == known[index].name)
        if known[index].all_rows:
            return self._all(call, leaves, structure, bit)
        return self._few(call, leaves, structure, sources, bit)

    def _few(self, call: Call, leaves: list[Any], structure: Any, sources: Sequence["Source"], bit: int) -> Any:
        name = self.target.names[bit]
        if self.check and not self._are_as_handed(leaves, sources, bit):
            self.other_rows.add(name)
        if name in self.other_rows and not self.deferred:
            sources = [replace(source, few=None, is_direct=not source.grows) for source in sources]
        direct = all(source.is_direct for source in sources)
        if call.direct == bit and not direct:
            self.other_rows.add(name)
        as_given = direct and call.direct == bit  # in both passes it is given what forward was, and nothing else
        shares = bit in self.shares and (self.recorder.shared or (as_given and call.is_whole))
        if shares and self.recorder.shared and not self.handed.is_compiled:
            check_not_reentrant(self.target)
        batch = self.rows.batch
        own = any(source.few is not None and source.few.shape[0] == 2 * batch * source.fold for source in sources)
        foreign = self.extra_rows and any(source.grows and source.few is None for source in sources)
        per_sample = (own and batch > 1) or foreign
        per_sample |= any(source.grows and (source.is_listed or source.bit == EVERYWHERE) for source in sources)
        here = None if self.here is None else self.here[name]
        rows = EncoderRows(name, bit, self.rows, per_sample, shares, here, self.mixes)
        single = as_given and len(self.recorder.calls) == 1
        output = known_features(joint_call := self.recorder.calls_with.get(bit), rows) if single else None
        dims: Mapping[int, int] = {}
        if output is not None and joint_call is not None:
            dims, rows.spare = joint_call.dims, 0
        self.absent_rows[name] = few = (1, rows.spare) if per_sample else (0, 1 + rows.spare)
        keeps = self.recorder.shared and shares and single and (rows.absent, rows.spare) == (1, 0)
        absent = [source.few[-source.fold :] for source in sources if source.few is not None] if keeps else None
        if output is None and keeps:
            output = self.absent_features.find(name, absent)
            if output is not None:
                self.kept[name] = output
        if output is None:
            found = list(zip(leaves, sources, call.input_sizes, strict=True))
            picked = [self._picked(*one, rows) for one in found]
            # Absent rows by themselves need no graph if they are to have no gradient.
            constant = rows.present == 0 and not self.absent_features.gradient
            if self.counts is not None:
                self.counts.add(name, few[0] + (rows.present > 0), few[1])
            with torch.no_grad() if constant else nullcontext():
                if not rows.present or any(source.is_listed for source in sources):
                    args, kwargs = unflattened(picked, structure)
                    output = self.recorder.function(*args, **kwargs)
                else:
                    output = self._apart(name, picked, [dim_of(*one, rows) for one in found], structure, rows)
        if keeps:
            self.absent_features.keep(name, absent, output)
        return self._in_place(output, call, rows, shares, dims)

    def _apart(
        self, name: str, picked: list[Any], dims: Sequence[int | None], structure: Any, rows: EncoderRows
    ) -> Any:
        """What an encoder makes of present rows and absent ones, each by themselves where they may meet."""

        def run(leaves: list[Any]) -> Any:
            args, kwargs = unflattened(leaves, structure)
            return self.recorder.function(*args, **kwargs)

        def look() -> bool:
            return rows_meet(self.target.owner, run, picked, list(map(rows.first, picked, dims)))

        if self.known is not None:
            output = None if name in self.one_pass.mixes else run(picked)
        else:
            call = name, len(self.recorder.calls) - len(self.pending) - 1
            output = at_once(self.one_pass, call, partial(run, picked), look, self.watches())
        return self._in_two(picked, dims, structure, rows) if output is None else output

    def _in_two(self, picked: Sequence[Any], dims: Sequence[int | None], structure: Any, rows: EncoderRows) -> Any:
        """What an encoder in which rows may meet makes of present rows, and of absent ones, each by themselves."""
        outputs = []
        for present in (True, False):
            parts = [rows.part(x, dim, present) for x, dim in zip(picked, dims, strict=True)]
            args, kwargs = unflattened(parts, structure)
            with untouched(self.target.owner, parts):  # each finds what the joint pass has left
                outputs.append(self.recorder.function(*args, **kwargs))
        if flattened(outputs[0])[1] != flattened(outputs[1])[1]:
            raise refusal(self.target.name, _OTHER_STRUCTURE)
        return mapped(behind, *outputs)

    def _are_as_handed(self, leaves: Sequence[Any], sources: Sequence["Source"], bit: int) -> bool:
        """Whether the rows are those that forward was given: who writes past autograd leaves no version."""
        for leaf, source in zip(leaves, sources, strict=True):
            if source.few is None or source.bit != bit or isinstance(leaf, Deferred):
                continue
            if not close(leaf, self.rows.expanded(bit, source.few)):
                return False
        return True

    def _picked(self, leaf: Any, source: "Source", size: torch.Size | None, rows: EncoderRows) -> Any:
        if not source.grows:
            return written(leaf)
        if source.is_listed:
            assert size is not None
            return rows.pick_values(Samples(leaf), size[0] // rows.batch)
        if source.few is not None and self.known is None:  # `leaf` may have been written to, which no graph tells
            few, every = source.few, rows.batch * source.fold
            if source.bit == EVERYWHERE:  # an absent row has what its sample has
                few = torch.cat([few[:every], few[:every]])
            return rows.pick_few(few, source.fold)
        leaf = written(leaf)
        dim, rows_a_sample = rows.find(leaf, size)
        if dim is None:
            return leaf
        if self.check:
            rows.verify(leaf, dim, rows_a_sample)
        return rows.pick(leaf, dim, rows_a_sample)

    def _all(self, call: Call, leaves: list[Any], structure: Any, bit: int | None) -> Any:
        """Encodes every row as it is given; where features are shared, present rows have those of the joint pass."""
        args, kwargs = unflattened([written(leaf) for leaf in leaves], structure)
        output = self.recorder.function(*args, **kwargs)
        if not self.rows.batch:
            return output
        if bit is not None:
            self.all_rows.append(self.target.names[bit])
            if self.counts is not None:
                self.counts.add(self.target.names[bit], len(self.rows.subsets))
        gradient = self.absent_features.gradient
        if not self.recorder.shared and gradient:
            return output
        if bit is None:
            what = "is given rows of several modalities, so that nobody knows whose features they are"
            raise refusal(self.target.name, what)
        rows = EncoderRows(self.target.names[bit], bit, self.rows, True, True)
        here = None if self.here is None else self.here[self.target.names[bit]]
        outputs, made = self._leaves("returns", output)
        shared = leaves_of(call.output) if self.recorder.shared else [None] * len(outputs)
        placed = [
            mixed(leaf, size, own, rows.is_present, here, gradient)
            for leaf, size, own in zip(outputs, call.output_sizes, shared, strict=True)
        ]
        if here is not None:
            self.dims.append(sample_dims(placed, call.output_sizes))
        return unflattened(placed, made)

    def _in_place(self, output: Any, call: Call, rows: EncoderRows, shares: bool, dims: Mapping[int, int]) -> Any:
        leaves, structure = self._leaves("returns", output)
        if len(leaves) != len(call.output_sizes):
            raise refusal(self.target.name, _OTHER_STRUCTURE)
        joint = leaves_of(call.output) if shares else [None] * len(leaves)
        expanded = [
            rows.expand(leaf, size, own, self.deferred, self.absent_features.gradient, dims.get(id(leaf)))
            for leaf, size, own in zip(leaves, call.output_sizes, joint, strict=True)
        ]
        if self.here is not None:
            self.dims.append(sample_dims(expanded, call.output_sizes))
        if self.origins is not None:
            self.origins.note(expanded, frozenset((rows.bit,)))
        return unflattened(expanded, structure)

    def _bits(self, leaves: list[Any], sources: Sequence["Source"]) -> frozenset[int]:
        """The modalities that what grows with the batch was computed from."""
        bits: frozenset[int] = frozenset()
        for leaf, source in zip(leaves, sources, strict=True):
            if not source.grows or source.is_listed:
                continue
            found = frozenset() if source.bit is None else frozenset((source.bit,))
            if not found and isinstance(leaf, Deferred):
                found = leaf.bits
            if not found:
                if self.origins is None:
                    raise NeedsOrigins
                found = self.origins.of(leaf)
            bits = bits | found  # torch 2.11 has no `|=` of frozen sets in a graph
        return bits

    def _leaves(self, does: str, tree: Any) -> tuple[list[Any], pytree.TreeSpec]:
        leaves, structure = flattened(tree, is_leaf=lambda leaf: is_listed(leaf) or is_opaque(leaf))
        opaque = next((leaf for leaf in leaves if is_opaque(leaf) and not is_listed(leaf)), None)
        if opaque is not None:
            kind = type(opaque).__name__
            cache = " (a decoder's cache: call it with use_cache=False)" if "Cache" in kind else ""
            raise refusal(self.target.name, f"{does} a {kind}{cache}, whose rows cannot be told apart")
        return leaves, structure

    def finish(self) -> None:
        """That it was called as often as in the joint pass.

        Raises:
            ValueError: it was not.
        """
        if self.pending:
            raise refusal(self.target.name, "is called less often in the masked pass than in the joint pass")
