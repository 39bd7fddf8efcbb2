"""Masked passes of a network whose encoders are named by path, without rewriting its forward.

The network's own forward runs on the batch of all masked inputs, so everything around the encoders (batch
sizes, padding masks, skip connections) is what it would be anyway. Only the encoders' forwards are replaced
for that pass: from the rows that they are given they pick the present ones and an absent one, encode these,
and answer with the features put in place for every row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from agm._inputs.absent import batch_size, device_of
from agm._inputs.arguments import Arguments, Binding
from agm._inputs.rows import check_others, copied
from agm._inputs.trees import leaves_of
from agm._lazy_rows.decision import SHARDED, Deferral, found_deferral, some_subsets
from agm._lazy_rows.tensor import CannotDefer, Rows, current, outcome
from agm._module_state.compiled import compiled_part, in_one_piece, is_compiled
from agm._module_state.eval_mode import counts_samples, mixes_samples, why_mixes
from agm._module_state.hooks import ForwardHooks
from agm._module_state.structure import Structure, Structures
from agm._module_state.untouched import untouched
from agm._one_pass.choice import GLOBAL_HOOKS, Choice, apart, choose, in_common
from agm._one_pass.counters import CountingTogether, has_counters
from agm._one_pass.joint_call import OWN_WAY, JointCall, in_the_way, surroundings
from agm._one_pass.known_layers import known_layers
from agm._passes.absent_features import AbsentFeatures
from agm._passes.by_subset import is_known, ordered, subset_passes
from agm._passes.encoder_paths import find_targets
from agm._passes.encoder_recording import Handed, Recorder, Target
from agm._passes.masked_run import MaskedRun, called_instead, few_rows
from agm._passes.options import MaskedOptions
from agm._passes.outputs import Outputs
from agm._passes.plan import ONE_ROW, Line, apart_lines, called_lines, encoder_lines, fusion_line, fusion_lines
from agm._passes.record import Record
from agm._passes.subsets_apart import apart_if_they_meet, subset_parts
from agm.distributed import Peers, is_sharded

__all__ = ["InterceptedPasses"]

_OTHER_ROWS = "in the masked pass it is given other rows than the modality's"
_ONE_SAMPLE = "with a single sample more rows are encoded than one pass would have"
_METHOD = "it is a method of a module"
_TOWER = "it encodes several modalities, one after another"


class InterceptedPasses:
    """The joint pass as it is; then all masked inputs as one batch, the encoders on present rows and absent ones.

    Where the joint pass and the masked pass both give an encoder the modality's input as it is, all its rows can go
    through it in the joint pass, and where no layer of it depends on the mode the features of the joint pass serve the
    present rows. Whether they do is seen in every step.

    Args:
        network: whose forward calls the encoders.
        binding: how modalities enter it.
        outputs: where its output holds the logits.
        options: of the masked passes, with `encoders`.
        peers: the processes that take every step together.
        record: what is known of the network.
        absent_features: of rows in which a modality is absent.
        structures: of the network's modules.

    Raises:
        ValueError: a path leads nowhere, or encoders have modules in common.
        TypeError: a path is not a string.
    """

    def __init__(
        self,
        network: nn.Module,
        binding: Binding,
        outputs: Outputs,
        options: MaskedOptions,
        peers: Peers,
        record: Record,
        absent_features: AbsentFeatures,
        structures: Structures,
    ) -> None:
        assert options.encoders is not None
        self.network = network
        self.binding = binding
        self.outputs = outputs
        self.modalities = binding.modalities
        self.paths = dict(options.encoders)
        self.shared = options.shared
        self.passes = options.passes
        self.peers = peers
        self.record = record
        self.absent_features = absent_features
        self.structures = structures
        self.head = None if options.summing_head is None else outputs.head
        self._targets()

    def _targets(self, structure: Structure | None = None) -> list[Target]:
        find = partial(find_targets, self.network, self.paths, self.modalities)
        return structure.chosen("targets", find) if self._are_fixed(structure) else find()

    def _are_fixed(self, structure: Structure | None) -> TypeGuard[Structure]:
        """Whether the paths lead where they do as long as a structure stays: a property may lead elsewhere by then."""
        return structure is not None and structure.chosen("paths are fixed", self._are_registered)

    def _are_registered(self) -> bool:
        registered = dict(self.network.named_modules(remove_duplicate=False))
        for path in self.paths.values():
            owner, _, method = path.rpartition(".")
            if path not in registered and not callable(getattr(type(registered.get(owner)), method, None)):
                return False
        return True

    def encoders(self) -> dict[str, nn.Module]:
        """Modality -> its encoder, or the module whose method it is, of those that are named."""
        by_name = {name: target.owner for target in self._targets() for name in target.names.values()}
        return {name: by_name[name] for name in self.paths}

    def encoder_calls(self) -> list[tuple[nn.Module, str, list[str]]]:
        """Of each encoder the module, the method that is called, and the modalities of its calls, in their order."""
        found = []
        for target in self._targets():
            order = self.record.order.get(str(target)) or list(target.names.values())
            found.append((target.owner, target.method, order))
        return found

    def plan(self, subsets: int) -> list[Line]:
        """The passes of a training step, unless a batch shows that they cannot be."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        encoders, lines = self.encoders(), []
        left = [f"`{name}`" for name in self.modalities if name not in self.paths]
        note = f", with what encodes {', '.join(left)}" if left else ""
        part = "rest of the network"
        targets = self._targets()
        chosen = self._choose(targets, device)
        orders = {name: self.record.order.get(str(target), []) for target in targets for name in target.names.values()}
        calls = {name: max(order.count(name), 1) for name, order in orders.items()}
        if self.record.rows_meet:
            for name in self.paths:
                shown = self.record.several.get(name) if name in self.record.ordered else None
                lines += apart_lines(name, subsets, self.shared, calls[name], None if shown is None else shown[1])
            note += f", one subset at a time, because {self.record.rows_meet}"
            return [*lines, *fusion_lines(part, self.modalities, note, subsets)]
        for name in self.paths:
            if calls[name] > 1 and name in self.record.several:
                lines += called_lines(name, calls[name], *self.record.several[name])
                continue
            choice = self.record.choices(name, chosen[self.modalities.index(name)])
            rows = subsets if name in self.record.all_rows else None
            absent = self.record.absent_rows.get(name, ONE_ROW)
            lines += encoder_lines(self.network, name, encoders[name], choice, all_rows=rows, absent=absent)
        found, head = self.record.deferral, None if self.head is None else self.head.path
        return [*lines, *fusion_line(part, self.modalities, self.network, note, subsets, found, head)]

    def _chosen(
        self, targets: Sequence[Target], device: torch.device, structure: Structure | None
    ) -> dict[int, Choice]:
        """`_choose`, once for all batches in which it is the same: it goes by the modules and by nothing of a batch."""
        if not self._are_fixed(structure) or structure.exchanges:  # how many processes there are no structure tells
            return self._choose(targets, device)
        known = self.record
        state = (structure.depending(), structure.mixes_samples(), any(GLOBAL_HOOKS))
        key = ("choices", device, len(known.one_pass.depends), len(known.other_rows), known.rows_meet, state)
        return structure.chosen(key, partial(self._choose, targets, device))

    def _choose(self, targets: Sequence[Target], device: torch.device) -> dict[int, Choice]:
        """Bit -> how many passes the encoder of a modality takes."""
        if is_compiled(self.network):
            raise ValueError(
                "Expected a network with the paths of `encoders` not to be compiled as a whole, since its encoders "
                "answer with what they have computed before, for which it would be compiled anew each time. Compile "
                "the encoders (network.audio_net.compile()), or give it `encoders` and `fuse` and compile the model."
            )
        self.record.rows_meet = self.record.rows_meet or self._mixing(targets)
        found = {}
        for target in targets:
            for bit, name in target.names.items():
                if self.record.rows_meet:
                    found[bit] = apart(name, self.passes, self.record.rows_meet, shared=self.shared)
                    continue
                if target.method != "forward" or len(target.names) > 1:
                    reason = _TOWER if len(target.names) > 1 else _METHOD
                    found[bit] = apart(name, self.passes, reason, shared=self.shared)
                    continue
                unsplit = self._unsplit(targets, name)
                depends = name in self.record.one_pass.depends
                choice = choose(name, target.owner, self.passes, device, unsplit, shared=self.shared, depends=depends)
                if choice.is_one and name in self.record.other_rows:
                    choice = apart(name, self.passes, _OTHER_ROWS, shared=self.shared)
                found[bit] = choice
        return found

    def _unsplit(self, targets: Sequence[Target], name: str) -> Callable[[], str | None]:
        def unsplit() -> str | None:
            encoders = {own: target.owner for target in targets for own in target.names.values()}
            return in_common(self.network, encoders, name)

        return unsplit

    def _mixing(self, targets: Sequence[Target]) -> str:
        """The layer that puts rows of several subsets together, in words; shared encoders see none but absent rows."""
        mixing = mixes_samples(self.network)
        if self.shared and mixing:
            inside = {module for target in targets if target.method == "forward" for module in target.owner.modules()}
            mixing = [name for name in mixing if self.network.get_submodule(name) not in inside]
            mixing = mixing or counts_samples(self.network)
        return f"`{mixing[0]}` {why_mixes(self.network, mixing[0])[0]}" if mixing else ""

    @in_one_piece
    def __call__(
        self,
        arguments: Arguments,
        rows: Rows,
        absent: Mapping[str, Any],
        here: Mapping[str, Tensor] | None = None,
        hooks: ForwardHooks | None = None,
        structure: Structure | None = None,
    ) -> tuple[Any, Tensor | Mapping[int, Tensor]]:
        """The joint pass's output and masked logits, as `FactorisedPasses` returns them."""
        if arguments.others or arguments.rest:
            check_others(arguments, rows.batch)
        device = device_of(next(iter(arguments.inputs.values())))
        targets = self._targets(structure)
        choices = self._chosen(targets, device, structure)
        # Copies, since the network may write to its inputs in the joint pass.
        few = {name: few_rows(x, absent[name]) for name, x in arguments.inputs.items()}
        kept = Arguments(few, *_copied(arguments.others, arguments.rest), arguments.placed)
        output, recorders = self._joint(targets, arguments, absent, choices, hooks, structure)
        shares = frozenset([bit for bit in choices if self._may_share(bit, recorders)])
        given = MaskedRun(self, kept, device, here, recorders, shares, hooks)
        if structure is None and not self._are_apart(rows):
            return output, cast(Tensor, given.logits(rows, deferred=False))
        before = len(self.record.other_rows), self.record.rows_meet
        masked = self._masked(given, rows)
        if structure is None:
            return output, masked
        if (len(self.record.other_rows), self.record.rows_meet) != before:
            choices = self._choose(targets, device)
        for recorder in recorders:
            for bit, name in recorder.target.names.items():
                self.record.choices.note(name, choices[bit], recorder.outcome(bit, choices[bit]))
        return output, masked

    def _may_share(self, bit: int, recorders: Sequence[Recorder]) -> bool:
        """Whether joint features of a modality may serve its present rows."""
        if self.shared:
            return True
        for recorder in recorders:
            call = recorder.calls_with.get(bit)
            if call is not None and call.is_done and call.chosen.how == "joined":
                return True
        return False

    def _masked(self, given: "MaskedRun", rows: Rows) -> Tensor | Mapping[int, Tensor]:
        """The masked logits of all rows, after a first batch has shown on some of them what they may come from."""
        one_by_one, apart = partial(subset_passes, given, rows), self._are_apart(rows)
        asks = not apart or (self.peers.together and given.structure is not None)  # others may, and wait for this one
        if asks and not self._is_checked(rows.batch):
            self._check(given, replace(rows, subsets=some_subsets(rows.modalities)))
        if apart:
            if given.structure is not None and not is_known(given):
                self.record.ordered = ordered(given)
                with torch.no_grad():
                    given.logits(rows, deferred=False)
            self.absent_features.drop()
            return one_by_one(subset_parts(rows))
        if given.structure is not None:
            given.structure.ways.clear()  # those of the look
        masked = self._at_once(given, rows)
        return apart_if_they_meet(masked, rows, one_by_one, given.structure, self.record)

    def _are_apart(self, rows: Rows) -> bool:
        """Whether each subset has a pass of its own."""
        return len(self.record.rows_meet) > 0 and rows.batch > 0

    def _at_once(self, given: "MaskedRun", rows: Rows) -> Tensor | Mapping[int, Tensor]:
        found = self.record.deferral
        if found is None or found.how == "rows" or not rows.batch:
            return cast(Tensor, given.logits(rows, deferred=False))
        try:
            logits = current(given.logits(rows, deferred=True))
        except CannotDefer as error:  # on a way through the network that it has not taken before
            self.record.deferral = Deferral("rows", str(error))
            return cast(Tensor, given.logits(rows, deferred=False))
        return outcome(logits)

    def _is_checked(self, batch: int) -> bool:
        """Whether a batch like this one has been looked at, as closely as this one could be.

        With one sample rows in a wrong order cannot be told from right ones: a look at such a batch will do for its
        like, but not for others. Processes that train together look until all have had a batch that shows everything,
        since they must all look or none.
        """
        like = True if self.peers.together else batch > 1
        return like in self.record.looked or True in self.record.looked

    def _check(self, given: "MaskedRun", some: Rows) -> None:
        """What the encoders are given, and whether rows may be deferred, on the rows of some subsets."""
        weights = list(self.network.parameters())
        with untouched(self.network, weights):
            expected = given.logits(some, deferred=False, check=True).detach()
        least = self.peers.least(some.batch, given.device)
        self.record.looked.add(least > 1)
        if not least or any(weight.is_meta for weight in weights):
            return
        if any(map(is_sharded, self.network.modules())):
            self.record.deferral = SHARDED
            return
        if (part := compiled_part(self.network, self.encoders().values())) is not None:
            self.record.deferral = Deferral("rows", f"`{part}` is compiled")
            return
        run = partial(given.logits, some, deferred=True)
        with untouched(self.network, weights):
            found = found_deferral(expected, run if self.head is None else partial(self.head.watched, run), self.peers)
        if self.head is not None and (refused := self.head.refusal(found)) is not None:
            self.record.looked.discard(least > 1)  # the next batch is refused, too
            raise refused
        self.record.deferral = found

    def _joint(
        self,
        targets: Sequence[Target],
        arguments: Arguments,
        absent: Mapping[str, Any],
        choices: Mapping[int, Choice],
        hooks: ForwardHooks | None,
        structure: Structure | None,
    ) -> tuple[Any, list[Recorder]]:
        """The joint pass as it is, and what each encoder was called with."""
        handed, batch = Handed(is_compiled=structure is None), batch_size(arguments.inputs)
        if not handed.is_compiled:
            for bit, value in enumerate(arguments.inputs.values()):
                for leaf in leaves_of(value):
                    handed.add(leaf, bit)
        around = surroundings(handed.is_compiled)
        recorders = [
            self._recorder(target, targets, choices, arguments, absent, handed, structure, around, batch)
            for target in targets
        ]
        with called_instead(
            recorders, structure is not None, *([hooks.watched] if hooks is not None and hooks.are_there else [])
        ):
            output = self.binding.call(arguments)
            joint = self.outputs.logits(output)  # refused here, where it is the joint pass's
        for recorder in recorders:
            for call in recorder.calls_with.values():
                call.check_reach(joint)
            if not recorder.calls:
                raise ValueError(
                    f"Expected the network's forward to call {recorder.target}, but it did not. Name in `encoders` the "
                    "module that forward calls, or the method ('clip.get_image_features')."
                )
            recorder.check_memory(self.absent_features.gradient)
        return output, recorders

    def _recorder(
        self,
        target: Target,
        targets: Sequence[Target],
        choices: Mapping[int, Choice],
        arguments: Arguments,
        absent: Mapping[str, Any],
        handed: Handed,
        structure: Structure | None,
        around: tuple[Any, ...],
        batch: int,
    ) -> Recorder:
        calls: dict[int, JointCall] = {}
        without: dict[int, str] = {}
        for bit, name in target.names.items():
            inputs, rows, choice = arguments.inputs[name], absent[name], choices[bit]
            reason = _ONE_SAMPLE if batch < 2 else in_the_way(inputs)
            if reason is None and name in self.record.several and self.passes != "one":
                # Of several calls the rows that go along serve none, but for the present ones of "joined".
                reason = OWN_WAY if self.shared or choice.how == "split" else None
            if reason is not None:
                without[bit] = reason
            elif choice.is_one and not (self.shared and self.absent_features.find(name, leaves_of(rows)) is not None):
                calls[bit] = JointCall(
                    name,
                    target.owner,
                    choice,
                    inputs,
                    rows,
                    shared=self.shared,
                    keeps=True,
                    unsplit=self._unsplit(targets, name),
                    passes=self.passes,
                    known=self.record.one_pass,
                    network=self.network,
                    layers=None if structure is None else known_layers(structure.part(target.owner)),
                    around=around,
                    copies=False,
                    aliases=True,
                )
        keeps = any([choices[bit].how in ("shared", "joined") for bit in target.names])  # which serve present rows
        recorder = Recorder(target, calls, keeps, handed, self.shared, without, around)
        kept = not calls and target.method == "forward" and self.absent_features.are_kept
        if kept and structure is not None and has_counters(structure.part(target.owner).buffered):
            recorder.function = CountingTogether(target.owner)
        return recorder


def _copied(others: list[Any], rest: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return (copied(others), copied(rest)) if others or rest else (others, rest)
