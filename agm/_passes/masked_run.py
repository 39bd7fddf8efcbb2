"""The masked pass of a network whose encoders are named by path."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from agm._inputs.absent import is_rows
from agm._inputs.arguments import Arguments
from agm._inputs.rows import EVERYWHERE, combine
from agm._inputs.samples import Samples
from agm._inputs.trees import leaves_of, mapped
from agm._lazy_rows.tensor import Deferred, Rows
from agm._module_state.eval_mode import evaluation, mixes_samples
from agm._module_state.hooks import ForwardHooks
from agm._module_state.replace_forward import answering_methods
from agm._module_state.undo import Contexts
from agm._passes.encoder_calls import Answer, KnownCall, NeedsOrigins
from agm._passes.encoder_recording import Handed, Recorder, Target
from agm._passes.origins import Origins
from agm._passes.parted_features import AnotherWay
from agm.distributed import is_sharded

if TYPE_CHECKING:
    from agm._passes.by_path import InterceptedPasses

__all__ = ["MaskedRun", "called_instead", "few_rows"]


class _Encoding(Protocol):
    @property
    def target(self) -> Target: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def called_instead(
    functions: Sequence[_Encoding], eager: bool, *around: Callable[[], AbstractContextManager[Any]]
) -> AbstractContextManager[None]:
    """Each encoder is called as one of these, its own, inside of other contexts; `eager` where no pass is compiled."""
    instead = answering_methods([(one.target.owner, one.target.method, one) for one in functions], eager)
    return Contexts(*around, lambda: instead) if around else instead


class MaskedRun:
    """What the masked passes of one step are given: the same for any of its rows.

    Args:
        passes: whose they are.
        arguments: of forward, the inputs as `few_rows`.
        device: of the inputs.
        here: modality -> (B,), which samples have it.
        recorders: what the encoders did in the joint pass.
        shares: bits of the modalities whose joint features may serve the present rows.
        hooks: of the network's modules.
    """

    def __init__(
        self,
        passes: "InterceptedPasses",
        arguments: Arguments,
        device: torch.device,
        here: Mapping[str, Tensor] | None,
        recorders: Sequence[Recorder],
        shares: frozenset[int],
        hooks: ForwardHooks | None,
    ) -> None:
        self.passes = passes
        self.arguments = arguments
        self.device = device
        self.here = here if passes.shared else None
        self.recorders = recorders
        self.shares = shares
        self.hooks = hooks
        # Arguments beside the modalities can reach an encoder, and then every absent row is another one.
        self.extra_rows = (len(arguments.others) > 0 or len(arguments.rest) > 0) and _has_rows(
            arguments.others, arguments.rest
        )
        self.kept: dict[str, Any] = {}  # modality -> features of an absent row that an earlier step has computed
        self.structure = passes.structures.of(passes.network)  # as the joint pass has left it
        passes.record.one_pass.holds_for(self.structure)

    def logits(self, rows: Rows, *, deferred: bool, check: bool = False) -> Any:
        """What the network makes of the masked rows, its encoders answering for them.

        Args:
            rows: which.
            deferred: whether forward is given deferred rows; else all are written out.
            check: whether to look at the rows that encoders pick.
        """
        record = self.passes.record
        if self.structure is None:
            return self._run(rows, deferred, check, None)
        while True:
            try:
                return self._run(rows, deferred, check, Origins() if record.follows else None)
            except NeedsOrigins:
                record.follows = True
            except AnotherWay:
                pass  # the same rows are looked at

    def _run(self, rows: Rows, deferred: bool, check: bool, origins: Origins | None) -> Any:
        compiling = self.structure is None
        handed = Handed(is_compiled=compiling)
        place = _deferred if deferred else _written

        def handing(bit: int, few: Any) -> Any:
            def hand(leaf: Any) -> Any:
                placed = place(rows, bit, leaf)
                if is_rows(leaf):
                    handed.add(placed, bit, leaf)
                return placed

            return mapped(hand, few)

        few, others, rest, placed = self.arguments
        inputs = {name: handing(bit, leaves) for bit, (name, leaves) in enumerate(few.items())}
        if self.extra_rows and deferred:
            others, rest = (handing(EVERYWHERE, mapped(_one_more, tree)) for tree in (others, rest))
        elif self.extra_rows:
            everywhere = [True] * len(rows.subsets)
            others, rest = (combine(tree, tree, everywhere, rows.part) for tree in (others, rest))
            for leaf in leaves_of((others, rest)):
                handed.add(leaf, EVERYWHERE)
        answers = [
            Answer(
                recorder,
                rows,
                handed,
                self.here,
                self.shares,
                mixes=self.passes.shared and self._mixes(recorder.target.owner),
                extra_rows=self.extra_rows,
                origins=origins,
                other_rows=() if compiling else self.passes.record.other_rows,
                known=self._known_calls(recorder) if compiling else None,
                one_pass=self.passes.record.one_pass,
                absent_features=self.passes.absent_features,
                check=check,
                deferred=deferred,
                watches=self.watches,
            )
            for recorder in self.recorders
        ]
        network = self.passes.network
        if origins is not None:
            for tensor, _, bit, _ in handed.of.values():
                origins.note(tensor, frozenset((bit,)))
        within = called_instead(answers, not compiling)
        with evaluation(network, self.hooks, self.structure), within, nullcontext() if origins is None else origins:
            output = self.passes.binding.call(Arguments(inputs, others, rest, placed))
            logits = self.passes.outputs.logits(output)
        for answer in answers:
            answer.finish()
        if compiling or not rows.batch:  # a graph would be guarded by what it has found
            return logits
        record = self.passes.record
        for answer in answers:
            record.all_rows.update(answer.all_rows)
            record.other_rows.update(answer.other_rows)
            if rows.batch > 1:
                record.absent_rows.update(answer.absent_rows)
                if answer.counts is not None:
                    calls = answer.order, answer.recorder.calls_with
                    record.several.update(answer.counts.of_each(answer.target.names, *calls, rows.batch))
            record.order[str(answer.target)] = answer.order
            if self.here is not None:
                record.dims[str(answer.target)] = answer.dims
            if answer.kept:
                self.kept.update(answer.kept)
        return logits

    def watches(self) -> bool:
        """Whether encoders may be watched for the ways that rows go: other processes would not begin anew with this."""
        known = self.structure
        if known is None or known.is_compiled or known.exchanges:
            return False
        return not known.chosen("sharded", lambda: any(map(is_sharded, self.passes.network.modules())))

    def _mixes(self, encoder: nn.Module) -> bool:
        if self.structure is None:
            return bool(mixes_samples(encoder))
        return self.structure.mixes_samples() and self.structure.part(encoder).mixes_samples()

    def _known_calls(self, recorder: Recorder) -> Sequence[KnownCall]:
        """What an eager step has found out about each call of an encoder; none, if there was none that could."""
        record = self.passes.record
        order = record.order.get(str(recorder.target), []) if True in record.looked else []
        return [KnownCall(name, name in record.all_rows) for name in order] if len(order) == len(recorder.calls) else []


def _has_rows(*trees: Any) -> bool:
    return any(is_rows(leaf) or isinstance(leaf, Samples) for leaf in leaves_of(trees))


def few_rows(present: Any, absent: Any) -> Any:
    """(B, ...) and (1 or B, ...) one after another."""
    return mapped(lambda leaf, row: torch.cat([leaf, row]) if is_rows(leaf) else leaf, present, absent)


def _one_more(leaf: Any) -> Any:
    """(B, ...) with a row more, which is never looked at, in the place of an absent one."""
    return torch.cat([leaf, leaf[:1]]) if is_rows(leaf) else leaf


def _written(rows: Rows, bit: int, leaf: Any) -> Any:
    if isinstance(leaf, Samples):
        return leaf.repeated(len(rows.subsets), rows.part)
    return rows.expanded(bit, leaf) if is_rows(leaf) else leaf


def _deferred(rows: Rows, bit: int, leaf: Any) -> Any:
    return Deferred.of(rows, bit, leaf) if is_rows(leaf) else _written(rows, bit, leaf)
