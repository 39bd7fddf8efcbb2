"""Masked passes of a network that is built to be factorised: `encoders` and `fuse(features) -> logits`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from agm._inputs.absent import device_of, is_rows
from agm._inputs.arguments import Arguments, Binding
from agm._inputs.rows import aligned, copied, lacking, masked_arguments, stacked
from agm._inputs.samples import has_samples, unwrap
from agm._inputs.trees import leaves_of, mapped
from agm._lazy_rows.decision import Deferral, declares_sum, deferral
from agm._lazy_rows.tensor import CannotDefer, Rows, current, outcome, written
from agm._module_state.compiled import is_compiled
from agm._module_state.eval_mode import evaluation, mixes_samples, why_mixes
from agm._module_state.hooks import ForwardHooks
from agm._module_state.modules import submodules
from agm._module_state.replace_forward import answering
from agm._module_state.structure import Structure, Structures
from agm._one_pass.choice import GLOBAL_HOOKS, Choice, apart, check_counts, choose, in_common
from agm._one_pass.counters import CountingTogether, has_counters
from agm._one_pass.joint_call import JointCall, in_the_way, versions
from agm._one_pass.known_layers import known_layers
from agm._passes.absent_features import AbsentFeatures, detached
from agm._passes.chunks import Chunks
from agm._passes.joint_pass import Joint, answer, joint_pass, refusal
from agm._passes.options import MaskedOptions
from agm._passes.outputs import Outputs
from agm._passes.parted_features import absent_features, deferred_leaf, features_apart, parted_features, written_leaf
from agm._passes.plan import ONE_ROW, Line, encoder_lines, fusion_line
from agm._passes.record import Record
from agm._passes.subsets_apart import apart_if_they_meet
from agm.distributed import Peers, is_sharded

__all__ = ["FactorisedPasses", "is_factorised"]

_Fuse = Callable[[Mapping[str, Any], Rows], Any]


def is_factorised(network: nn.Module) -> bool:
    """Whether the network offers `encoders`, a mapping of modules, and `fuse`."""
    encoders = getattr(network, "encoders", None)
    return isinstance(encoders, (Mapping, nn.ModuleDict)) and callable(getattr(network, "fuse", None))


class FactorisedPasses:
    """Each encoder sees the present rows and one absent row; `fuse` sees every subset, as one batch."""

    def __init__(
        self,
        network: nn.Module,
        binding: Binding,
        outputs: Outputs,
        options: MaskedOptions,
        chunks: Chunks,
        peers: Peers,
        record: Record,
        absent_features: AbsentFeatures,
        structures: Structures,
    ) -> None:
        self.network: Any = network
        self.structures = structures
        self.binding = binding
        self.outputs = outputs
        self.modalities = binding.modalities
        self.shared = options.shared
        self.passes = options.passes
        self.chunks = chunks
        self.peers = peers
        self.record = record
        self.absent_features = absent_features
        self.head = None if options.summing_head is None else outputs.head
        self._declares_sum = declares_sum(network)

    def __call__(
        self,
        arguments: Arguments,
        rows: Rows,
        absent: Mapping[str, Any],
        here: Mapping[str, Tensor] | None = None,
        hooks: ForwardHooks | None = None,
        structure: Structure | None = None,
    ) -> tuple[Any, Tensor | Mapping[int, Tensor]]:
        """The joint pass's output in the network's mode, and the masked logits.

        Args:
            arguments: of forward.
            rows: samples and subsets.
            absent: modality -> its absent input, one row or B.
            here: modality -> (B,), which samples have it; in the inputs of the others it is absent already.
            hooks: of the network's modules.
            structure: of the network as it is before the joint pass; None: the step is compiled.

        Returns:
            that output, and the masked ones (len(rows), C), or where they are a sum what each modality adds to
            them: its bit -> (B + 1, C), that of its absent row last.
        """
        self._check(arguments)
        inputs = arguments.inputs
        encoders = self.encoders()
        choices = self._chosen(encoders, inputs, structure)
        before = self._before_joint_pass(arguments)
        # Before the joint pass, since an encoder may write to its input.
        given, kept = {}, {}
        calls: dict[str, JointCall] = {}
        counting: dict[nn.Module, CountingTogether] = {}
        for name in self.modalities:
            absent_rows = aligned(absent[name])
            if type(absent_rows) is not Tensor and rows.batch > 1:
                self.record.absent_rows[name] = (1, 0) if _count(absent_rows) > 1 else ONE_ROW
            if self.shared and (features := self.absent_features.find(name, absent_rows)) is not None:
                kept[name] = features
                encoder = encoders[name]
                if has_counters(submodules(encoder) if structure is None else structure.part(encoder).buffered):
                    counting[encoder] = CountingTogether(encoder)
            elif call := self._joint_call(
                name, encoders[name], choices[name], inputs[name], absent_rows, rows.batch, structure
            ):
                calls[name] = call
            else:
                given[name] = copied(absent_rows) if self.shared else stacked(inputs[name], absent_rows)
        watched = nullcontext() if hooks is None or not hooks.are_there else hooks.watched()
        with watched, answering({**{call.encoder: call for call in calls.values()}, **counting}):
            found = joint_pass(self.network, encoders, unwrap(inputs), self.shared, self.outputs, self.record)
        for name, call in calls.items():
            if name not in found.frozen:
                call.check_reach(found.logits)
        joint, device = found.output, found.logits.device
        forward = None  # in the place of `fuse`
        if self.record.by_path and not torch.compiler.is_compiling():
            forward = partial(self._by_forward, before(), absent)
        structure = self.structures.of(self.network)  # as the joint pass has left it
        self.record.one_pass.holds_for(structure)
        with evaluation(self.network, hooks, structure):
            parted = {
                name: self._features(name, given.get(name), kept.get(name), found, calls.get(name), rows.batch)
                for name in self.modalities
            }
            if not self.absent_features.gradient:
                parted = {name: (present, detached(few)) for name, (present, few) in parted.items()}
                for name, (_, few) in parted.items():
                    if name not in kept:
                        self.absent_features.keep(name, aligned(absent[name]), few)
            # What the joint pass made of an absent input is, where it depends on the mode, not what an absent
            # modality's features are.
            if self.shared and here is not None:
                parted = {name: (lacking(*both, here[name]), both[1]) for name, both in parted.items()}
            if torch.compiler.is_compiling():  # a compiler cannot look into deferred rows
                how = Deferral("rows")
                if (declared := self._declared(parted)) is not None:
                    return joint, declared
            elif forward is not None:
                how = Deferral("rows", "forward does more than call the encoders and `fuse`")
            else:
                how = self._how(parted, rows, device)
            meet = self.record.rows_meet if self.chunks.have_room(rows.batch) else ""  # as many at a time as may be
            apart = len(meet) > 0
            if structure is not None:
                structure.ways.clear()  # those of the encoders
            masked: Tensor | Mapping[int, Tensor] | None = None
            if how.how == "sum" and not apart:
                masked = outcome(self._deferred(parted, rows))
            else:
                mixes = bool(mixes_samples(self.network)) if structure is None else structure.mixes_samples()
                apart = apart or mixes
                if not self.chunks and not apart:
                    masked = self._written(parted, rows, how, forward)
        if how.how == "sum":
            how = Deferral("rows")  # from here on

        def run(part: range | None) -> Tensor:
            return self._written(parted, replace(rows, part=part), how, forward)

        def alone(parts: Sequence[range]) -> Tensor | Mapping[int, Tensor]:
            return cast(Tensor, self.chunks.run(self.network, run, list(parts), hooks, structure))

        if masked is None:
            parts = self.chunks.parts(self.network, rows.batch, len(rows.subsets), meet)
            masked = self.chunks.run(self.network, run, parts, hooks, structure)
            if apart:
                return joint, masked
        return joint, apart_if_they_meet(masked, rows, alone, structure, self.record, self.chunks.max_rows)

    def _check(self, arguments: Arguments) -> None:
        """That its encoders and `fuse` can be called by themselves.

        Raises:
            TypeError: there are arguments beside the modalities.
            ValueError: the network is sharded by itself.
        """
        if not torch.compiler.is_compiling() and is_sharded(self.network):
            raise ValueError(
                "Expected a network with `encoders` and `fuse` not to be sharded by itself, since `fuse` runs outside "
                "of its forward, where its parameters are not whole. Shard the encoders, if you like, and the model: "
                "fully_shard(agm.AGM(network))."
            )
        if arguments.others or arguments.rest:
            raise TypeError(
                f"Expected no arguments beside the modalities {self.modalities} for a network with `encoders` and "
                f"`fuse`, but got {len(arguments.others)} more by position and {list(arguments.rest)} by keyword."
            )

    def _how(self, parted: Mapping[str, tuple[Any, Any]], rows: Rows, device: torch.device) -> Deferral:
        if self.record.deferral is None:
            encoders = self.encoders().values()

            def fuse(some: Rows, deferred: bool) -> Any:
                run = partial(self._fuse, parted, some, deferred)
                return run() if self.head is None else self.head.watched(run)

            found = deferral(self.network, fuse, rows, device, self.peers, encoders)
            if self.head is not None and found is not None and (refused := self.head.refusal(found)) is not None:
                raise refused
            self.record.deferral = found
        return self.record.deferral or Deferral("rows", "without numbers nothing can be verified")

    def _declared(self, parted: Mapping[str, tuple[Any, Any]]) -> Mapping[int, Tensor] | None:
        """What each modality adds to the logits, by a network that tells it, of features with one absent row."""
        if not self._declares_sum or self.outputs.are_withheld:  # then what its head is given is wanted
            return None
        absent = [leaf for _, rows in parted.values() for leaf in leaves_of(rows)]
        if len(absent) != len(parted) or any(leaf.shape[0] != 1 for leaf in absent):
            return None
        few = {name: torch.cat(features) for name, features in parted.items()}
        terms: Mapping[str, Tensor] = self.network.unimodal_logits(few)
        return {bit: terms[name] for bit, name in enumerate(self.modalities)}

    def _deferred(self, parted: Mapping[str, tuple[Any, Any]], rows: Rows) -> Any:
        try:
            return current(self._fuse(parted, rows, True))
        except CannotDefer as error:  # on a way through `fuse` that it has not taken before
            self.record.deferral = Deferral("rows", str(error))
            return self._fuse(parted, rows, False)

    def _written(
        self, parted: Mapping[str, tuple[Any, Any]], rows: Rows, found: Deferral, forward: _Fuse | None
    ) -> Tensor:
        if found.how == "rows":
            return cast(Tensor, self._fuse(parted, rows, False, forward))
        return cast(Tensor, written(self._deferred(parted, rows)))

    def _fuse(
        self, parted: Mapping[str, tuple[Any, Any]], rows: Rows, deferred: bool, forward: _Fuse | None = None
    ) -> Any:
        """`fuse` on the features of `rows`, deferred or written out; a part of the samples takes their first ones."""
        features = {}
        for bit, name in enumerate(self.modalities):
            present, absent = parted[name]
            place = partial(deferred_leaf if deferred else written_leaf, rows, bit)
            features[name] = mapped(place, present, absent)
        output = self.network.fuse(features) if forward is None else forward(features, rows)
        return self.outputs.logits(output)

    def _before_joint_pass(self, arguments: Arguments) -> Callable[[], Arguments]:
        """The callable gives the arguments as they are before the joint pass, which may write to them.

        Raises:
            ValueError: it has written to them, in a network whose forward was no more than its encoders and `fuse`.
        """
        if torch.compiler.is_compiling():
            return lambda: arguments
        if self.record.calls_fuse is None or self.record.by_path:
            inputs = copied(dict(arguments.inputs))
            return lambda: arguments._replace(inputs=inputs)
        before = versions(arguments.inputs)

        def unchanged() -> Arguments:
            if versions(arguments.inputs) != before:
                raise refusal(self.network, self.encoders())
            return arguments

        return unchanged

    def _by_forward(
        self, arguments: Arguments, absent: Mapping[str, Any], features: Mapping[str, Any], rows: Rows
    ) -> Any:
        """What forward returns for masked rows, its encoders answering with their features."""
        masked = masked_arguments(arguments, absent, rows.subsets, rows.part)
        answers = {encoder: answer(features[name]) for name, encoder in self.encoders().items()}
        with answering(answers):
            return self.network(**unwrap(masked.inputs))

    def encoders(self) -> dict[str, nn.Module]:
        """Modality -> its encoder."""
        return {name: self.network.encoders[name] for name in self.modalities}

    def encoder_calls(self) -> list[tuple[nn.Module, str, list[str]]]:
        """Of each encoder the module, the method that is called, and the modality of its calls."""
        return [(encoder, "forward", [name]) for name, encoder in self.encoders().items()]

    def plan(self, subsets: int) -> list[Line]:
        """The passes of a training step with `subsets` masked subsets, unless a batch shows that it cannot be."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        lines = []
        for name, encoder in self.encoders().items():
            choice = self.record.choices(name, self._choose(name, device))
            absent = self.record.absent_rows.get(name, ONE_ROW)
            lines += encoder_lines(self.network, name, encoder, choice, absent=absent)
        note = self.chunks.describe(self.network, self.record.rows_meet)
        found = Deferral("rows") if self.record.rows_meet else self.record.deferral
        head = None if self.head is None else self.head.path
        return [*lines, *fusion_line("fusion", self.modalities, self.network, note, subsets, found, head)]

    def _chosen(
        self, encoders: Mapping[str, nn.Module], inputs: Mapping[str, Any], structure: Structure | None
    ) -> Mapping[str, Choice]:
        """`_choose`, once for all batches in which it is the same: it goes by the modules and by nothing of a batch."""
        devices = {name: device_of(x) for name, x in inputs.items()}

        def choose() -> dict[str, Choice]:
            return {name: self._choose(name, device) for name, device in devices.items()}

        parts = [] if structure is None else [structure.part(encoder) for encoder in encoders.values()]
        if structure is None or any([part.exchanges for part in parts]):
            return choose()
        state = tuple([(part, part.depending(), part.mixes_samples()) for part in parts])
        key = ("choices", *devices.values(), len(self.record.one_pass.depends), any(GLOBAL_HOOKS), state)
        return structure.chosen(key, choose)

    def _choose(self, name: str, device: torch.device) -> Choice:
        if self.shared and torch.compiler.is_compiling():  # at once: a graph would be guarded by all that is looked at
            return Choice("shared", "masked='shared'")
        encoders = self.encoders()
        check_counts(name, encoders[name])
        if is_compiled(self.network):
            why = "the network is compiled as a whole, for encoders as they are"
            return apart(name, self.passes, why, shared=self.shared)
        if not self.shared and (mixing := mixes_samples(encoders[name])):
            self.record.one_pass.mixes.add(name)
            why = f"its `{mixing[0]}` {why_mixes(encoders[name], mixing[0])[0]}"
            return apart(name, self.passes, why)
        depends = name in self.record.one_pass.depends
        return choose(
            name, encoders[name], self.passes, device, self._unsplit(name), shared=self.shared, depends=depends
        )

    def _joint_call(
        self,
        name: str,
        encoder: nn.Module,
        chosen: Choice,
        inputs: Any,
        absent: Any,
        batch: int,
        structure: Structure | None,
    ) -> JointCall | None:
        """What runs in the place of an encoder whose rows all go through it in the joint pass."""
        if not batch or not chosen.is_one:
            return None
        if (reason := in_the_way(inputs)) is not None:
            self.record.choices.note(name, chosen, apart(name, self.passes, reason, shared=self.shared))
            return None
        return JointCall(
            name,
            encoder,
            chosen,
            inputs,
            absent,
            shared=self.shared,
            keeps=self.shared,
            unsplit=self._unsplit(name),
            passes=self.passes,
            known=self.record.one_pass,
            network=self.network,
            layers=None if structure is None or batch < 2 else known_layers(structure.part(encoder)),
        )

    def _unsplit(self, name: str) -> Callable[[], str | None]:
        return lambda: in_common(self.network, self.encoders(), name)

    def _features(
        self, name: str, given: Any, kept: Any, found: Joint, call: JointCall | None, batch: int
    ) -> tuple[Any, Any]:
        """Features of the present rows and of the absent ones, in eval mode, if these are not `kept`."""
        if kept is not None:
            both = found.features[name], kept
        else:
            both = self._encoded(name, given, found, call, batch)
        return detached(both) if name in found.frozen else both

    def _encoded(self, name: str, given: Any, found: Joint, call: JointCall | None, batch: int) -> tuple[Any, Any]:
        if call is not None:
            given = call.second_pass()
            self.record.choices.note(name, call.planned, call.outcome())
            if given is None and call.chosen.how == "joined":
                return found.features[name] if self.shared else call.present, call.more
            if given is None:
                return parted_features(name, call.more, batch)
        # Absent rows by themselves need no graph if they are to have no gradient.
        constant = self.shared and not self.absent_features.gradient
        with ExitStack() as stack:
            if not torch.compiler.is_compiling():
                stack.enter_context(found.as_there(name))
            if constant:
                stack.enter_context(torch.no_grad())
            encoder = self.network.encoders[name]
            if self.shared:
                return found.features[name], absent_features(encoder, given)
            if batch and not has_samples(given):
                structure = self.structures.of(self.network)
                watches = structure is not None and not structure.is_compiled
                return features_apart(name, encoder, given, batch, self.record.one_pass, watches)
            return parted_features(name, encoder(unwrap(given)), batch)


def _count(absent: Any) -> int:
    """How many rows there are."""
    return max((leaf.shape[0] for leaf in leaves_of(absent) if is_rows(leaf)), default=1)
