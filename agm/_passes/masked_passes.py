"""How a network's masked logits are computed: chosen and checked once, then called with every batch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from threading import active_count
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.absent import absent_group, absent_input, batch_size, check_absent
from agm._inputs.arguments import Arguments, Binding, names_of
from agm._inputs.rows import lacking
from agm._inputs.whole import Whole
from agm._lazy_rows.joined_linear import Stacked
from agm._lazy_rows.tensor import Rows
from agm._module_state.capture import is_recorded
from agm._module_state.compiled import is_compiled
from agm._module_state.eval_mode import evaluation, unfrozen
from agm._module_state.hooks import ForwardHooks
from agm._module_state.replace_forward import KeptToThread
from agm._module_state.structure import Structure, Structures
from agm._one_pass.choice import refused
from agm._passes.absent_features import AbsentFeatures
from agm._passes.amplified import Look, can_look
from agm._passes.by_path import InterceptedPasses
from agm._passes.by_protocol import FactorisedPasses, is_factorised
from agm._passes.chunks import Chunks
from agm._passes.declared_head import DeclaredHead
from agm._passes.hook_notes import hook_notes
from agm._passes.options import MaskedOptions
from agm._passes.outputs import Outputs
from agm._passes.own_losses import kept_losses, kept_losses_note
from agm._passes.plan import Plan, fusion_lines
from agm._passes.record import Record
from agm._passes.whole_passes import check_wholes, whole_passes, wholes_note
from agm.distributed import Peers
from agm.modulation.additive import AdditiveLogits
from agm.modulation.checks import check_presence
from agm.shapley.sampling import SubsetSample
from agm.shapley.weights import proper_subsets

__all__ = ["MaskedPasses"]


class MaskedPasses:
    """How a network's masked logits are computed: chosen and checked once, then called with every batch.

    Args:
        network: any module whose forward takes the modalities and returns logits (B, ..., C).
        options: their settings, see `masked_logits`.
        peers: the processes that take every step together; None: none do.
        record: what is known of the network under these options; None: nothing yet.
        absent_features: those that are kept from step to step; None: none yet.

    Attributes:
        modalities: their names, in bit order.
        binding: how they enter the network's forward.
        outputs: where its output holds the logits.
        absent: modality -> what an absent input is.
        kept_losses: attributes in which the network keeps a loss of the logits that the masked passes do not modulate,
            as far as the first step has shown.

    Raises:
        ValueError: names, paths or a mode that cannot be.
    """

    def __init__(
        self,
        network: nn.Module,
        options: MaskedOptions,
        peers: Peers | None = None,
        record: Record | None = None,
        absent_features: AbsentFeatures | None = None,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"Expected argument `network` to be an nn.Module, but got {type(network).__name__}.")
        own = tuple(network.encoders) if is_factorised(network) else ()  # type: ignore[arg-type]
        modalities = own if options.modalities is None else options.modalities
        if not modalities:
            raise ValueError(
                "Expected argument `modalities` to name the network's modalities, but got None: only a network that "
                "offers `encoders` and `fuse` names them itself."
            )
        self.modalities = names_of(modalities)
        encoders = options.encoders
        if own and not encoders and set(own) != set(self.modalities):
            raise ValueError(
                f"Expected argument `modalities` to be those that the network's `encoders` name, {own}, in any order, "
                f"but got {self.modalities}."
            )
        peers = Peers(False) if peers is None else peers
        record = Record() if record is None else record
        self.record = record
        self.peers = peers
        self.network = network
        self.options = options
        self.shared = options.shared
        self.absent = check_absent(options.absent, self.modalities)
        by_callable = [n for n, one in self.absent.items() if callable(one) and not isinstance(one, Tensor)]
        self.binding = Binding(network, modalities, options.inputs, by_callable)
        self.head = None if options.head is None else DeclaredHead(network, options.head)
        self.outputs = Outputs(options.output, options.class_dim, self.head)
        self.chunks = Chunks(options.max_rows, options.checkpoint, self.head)
        if absent_features is None:
            absent_features = AbsentFeatures(options.absent_gradient, options.absent_refresh)
        self.absent_features = absent_features
        self.kept_losses: tuple[str, ...] = ()
        self._has_looked = False
        self._structures = Structures()
        self._parted: InterceptedPasses | FactorisedPasses | None = None  # None: the network is one piece
        if encoders:
            if self.chunks:
                raise ValueError(
                    "Expected neither `max_rows` nor `checkpoint` with the paths of `encoders`: there the network's "
                    "forward runs once, on all masked rows. Leave `encoders` out, or give the network `encoders` and "
                    "`fuse`, whose fusion then runs in chunks."
                )
            self._parted = InterceptedPasses(
                network, self.binding, self.outputs, options, peers, record, self.absent_features, self._structures
            )
        elif own:
            self._parted = FactorisedPasses(
                network,
                self.binding,
                self.outputs,
                options,
                self.chunks,
                peers,
                record,
                self.absent_features,
                self._structures,
            )
        elif not options.absent_gradient:
            raise ValueError(
                "Expected argument `absent_gradient` to be True for a network of one piece, of which nobody knows what "
                "an absent modality's features are, but got False. Name the encoders in `encoders`."
            )
        elif options.summing_head is not None:
            raise ValueError(
                "Expected `encoders` with `head`, since in a network of one piece nobody knows what each modality "
                "gives the head, but got none. Name the encoders, or leave `head` out."
            )
        elif options.passes == "one":
            raise refused(self.modalities[0], "no encoder is known in a network of one piece. Name them in `encoders`")

    def __call__(
        self, arguments: Arguments, present: Tensor | None = None, sample: SubsetSample | None = None
    ) -> Tensor | AdditiveLogits:
        """Masked logits (2**M - 1, B, C), or (R, B, C) of a sample of subsets; of a sum what it is made of.

        Args:
            arguments: of forward.
            present: (B, M) bool, which samples have which modalities.
            sample: the subsets that are wanted; None: all.

        Logits may have more dimensions between B and C.
        """
        return self.put_together(*self.apart(arguments, present, sample))

    def apart(
        self, arguments: Arguments, present: Tensor | None = None, sample: SubsetSample | None = None
    ) -> tuple[Tensor, Tensor | Mapping[int, Tensor], Rows]:
        """Of a call the joint logits, and what the masked passes gave, each with the graph of its own passes."""
        output, masked, rows = self.step(arguments, present, sample)
        return self.outputs.logits(output), masked, rows

    def step(
        self,
        arguments: Arguments,
        present: Tensor | None = None,
        sample: SubsetSample | None = None,
        structure: Structure | None = None,
    ) -> tuple[Any, Tensor | Mapping[int, Tensor], Rows]:
        """As `apart`, with the joint pass's output as the network returned it.

        Args:
            arguments, present, sample: as there.
            structure: of the network as it is now, if that has been looked for.
        """
        batch = batch_size(arguments.inputs)
        if self.binding.wholes:
            check_wholes(self, present)
        modalities = len(self.modalities)
        self.absent_features.begin()
        here, absent = None, self.absent_inputs(arguments)
        if present is not None:
            here = self._here(present, arguments, batch)
            arguments = self.lacking(arguments, absent, here)
        subsets = proper_subsets(modalities) if sample is None else sample.subsets[:-1]
        rows = Rows(batch, modalities, subsets)
        if self.record.by_path and isinstance(self._parted, FactorisedPasses):
            self._parted = self._as_paths(self._parted)
        run: Callable[..., Any] = self._parted or partial(whole_passes, self)
        structure = structure or self.structure()
        others = structure is not None and active_count() > 1
        if structure is not None:
            structure.tensors.note()
            self.record.steps += 1
            if self.record.steps >= self.record.looks_again and not is_recorded():
                run = partial(self.record.doubting, run)
            self.record.one_pass.holds_for(structure)
        hooks = None if structure is None else ForwardHooks(structure.hooked)
        look = self._look(arguments, absent, batch) if self.record.looks else None
        if others:
            with KeptToThread(self.network):
                output, masked = run(arguments, rows, absent, here, hooks, structure)
        else:
            output, masked = run(arguments, rows, absent, here, hooks, structure)
        if structure is not None and not self._has_looked and torch.is_grad_enabled():
            self._has_looked = True
            head = None if self.head is None else self.head.left_out
            self.kept_losses = kept_losses(self.network, self.outputs.leaf(output), head)
        if look is not None:  # behind the passes, which find the network as it is
            with KeptToThread(self.network) if others else nullcontext():
                within = partial(evaluation, self.network, hooks, self.structure())
                seen = (hooks is not None and hooks.act) or look(within)
            self.record.looks = 0 if seen else self.record.looks - 1
            self.record.tensor_hooks |= look.hooks
        return output, masked, rows

    def _look(self, arguments: Arguments, absent: Mapping[str, Any], batch: int) -> Look | None:
        """What will warn of absent rows that amplify; None: they have no gradient, or nobody can look at them."""
        if not batch or not torch.is_grad_enabled() or is_recorded():
            return None
        if self.peers.together or not self.absent_features.gradient or not can_look(self.network):
            self.record.looks = 0
            return None
        return Look(self.network, self.binding, self.outputs, self.encoders(), arguments, absent, batch)

    def structure(self) -> Structure | None:
        """That of the network as it is now; None in a step that is compiled."""
        return self._structures.of(self.network)

    def _as_paths(self, parted: FactorisedPasses) -> InterceptedPasses | FactorisedPasses:
        """The passes of a network whose forward is not quite its encoders and `fuse`: its encoders named by path."""
        paths = {module: path for path, module in self.network.named_modules()}
        found = {name: paths.get(encoder, "") for name, encoder in parted.encoders().items()}
        if self.chunks or not all(found.values()) or is_compiled(self.network):
            return parted
        options = replace(self.options, encoders=found)
        known = (parted.peers, self.record, self.absent_features, self._structures)
        return InterceptedPasses(self.network, self.binding, self.outputs, options, *known)

    @staticmethod
    def put_together(joint: Tensor, masked: Tensor | Mapping[int, Tensor], rows: Rows) -> Tensor | AdditiveLogits:
        """What a call returns, from what `apart` does."""
        if isinstance(masked, Tensor):
            return _stack(joint, masked, rows)
        return _summands(joint, masked, rows)

    def before_head(self, arguments: Arguments) -> tuple[Any, Tensor]:
        """The joint pass's output, and what the declared head is given for each subset, (2**M - 1, B, ..., D).

        The head itself does not run: where the output holds the logits there is what it was given.

        Raises:
            ValueError: the logits are not what the head returns.
        """
        assert self.head is not None
        with self.head.withheld():
            output, masked, rows = self.step(arguments)
            hidden = self.put_together(self.outputs.logits(output), masked, rows)
        return output, hidden if isinstance(hidden, Tensor) else hidden.stacked()

    def joint_before_head(self, arguments: Arguments) -> tuple[Any, Tensor]:
        """As `before_head`, of the joint pass alone: (1, B, ..., D)."""
        assert self.head is not None
        with self.head.withheld():
            output = self.joint(arguments)
            return output, self.outputs.logits(output).unsqueeze(0)

    def stacked(
        self, arguments: Arguments, present: Tensor | None = None, sample: SubsetSample | None = None
    ) -> Tensor:
        """As a call, but always (2**M - 1, B, C), or (R, B, C)."""
        logits = self(arguments, present, sample)
        return logits if isinstance(logits, Tensor) else logits.stacked(sample)

    def joint(self, arguments: Arguments, present: Tensor | None = None) -> Any:
        """The network's output, with absent inputs where samples lack a modality."""
        if present is not None:
            check_wholes(self, present)
            here = self._here(present, arguments, batch_size(arguments.inputs))
            arguments = self.lacking(arguments, self.absent_inputs(arguments), here)
        return self.binding.call(arguments)

    def _here(self, present: Tensor, arguments: Arguments, batch: int) -> dict[str, Tensor]:
        """Modality -> (B,), which samples have it."""
        device = next(leaf.device for leaf in pytree.tree_leaves(arguments.inputs) if isinstance(leaf, Tensor))
        check_presence("present", present, batch, len(self.modalities), device)
        return dict(zip(self.modalities, present.unbind(1), strict=True))

    def absent_inputs(self, arguments: Arguments) -> dict[str, Any]:
        """Modality -> its absent input, one row or B, given what its input is in this batch."""
        found: dict[str, Any] = {}
        for name, x in arguments.inputs.items():
            if isinstance(x, Whole):
                found[name] = x.absent(name, cast(Callable[[Any], Any], self.absent[name]))
            elif isinstance(self.binding.carriers[name], tuple) and self.binding.batch is None:
                found[name] = absent_group(name, x, self.absent.get(name), _pad_id(self.network))
            else:
                found[name] = absent_input(name, x, self.absent.get(name))
        return found

    @staticmethod
    def lacking(arguments: Arguments, absent: Mapping[str, Any], here: Mapping[str, Tensor]) -> Arguments:
        """The arguments with absent inputs where samples lack a modality."""
        inputs = {name: lacking(x, absent[name], here[name]) for name, x in arguments.inputs.items()}
        return arguments._replace(inputs=inputs)

    def encoders(self) -> dict[str, nn.Module]:
        """Modality -> its encoder, of those whose encoder is known."""
        return self._parted.encoders() if self._parted else {}

    def encoder_calls(self) -> list[tuple[nn.Module, str, list[str]]]:
        """Of each encoder the module, the method that is called, and the modalities of its calls, in their order."""
        return self._parted.encoder_calls() if self._parted else []

    def plan(self, subsets: int | None = None) -> Plan:
        """What a training step computes, with all subsets or so many drawn ones.

        Raises:
            ValueError: it would refuse the network.
        """
        masked = self.options.masked
        subsets = 2 ** len(self.modalities) - 2 if subsets is None else subsets
        if self._parted:
            note = (
                "Where an absent input is not the same for every sample (a padding mask that stays, a callable that "
                "returns B rows, another argument of forward that reaches the encoder), B absent rows are encoded "
                "instead."
            )
            if self.record.rows_meet and isinstance(self._parted, InterceptedPasses):
                note = "Each subset has a pass of its own through the network."
                if not self.shared and self.absent_features.gradient:
                    note += " Leave `encoders` out: they save nothing here."
            with unfrozen(self.network):
                kept = self.absent_features.note(self.encoders())
                notes = (note, *kept, *self._loss_notes(), *self.hook_notes())
                return Plan(self.modalities, masked, tuple(self._parted.plan(subsets)), notes)
        note = (
            'No encoders are named, so all masked inputs go through the whole network. Name them, encoders={"audio": '
            '"path.in.the.network", ...}, or give the network `encoders` and `fuse`: then each encoder sees 2 B + 1 '
            "rows, or B + 1 with masked='shared' or where nothing depends on the mode, for any number of modalities."
        )
        if self.record.rows_meet:
            note = (
                "Each subset has a pass of its own through the network. Compute within samples, whatever the others "
                "are, and all of them go through as one batch."
            )
        how = self.chunks.describe(self.network, self.record.rows_meet)
        lines = fusion_lines("network", self.modalities, how, subsets)
        notes = (note, *wholes_note(self), *self._loss_notes(), *self.hook_notes())
        return Plan(self.modalities, masked, tuple(lines), notes)

    def _loss_notes(self) -> tuple[str, ...]:
        return (kept_losses_note(self.kept_losses),) if self.kept_losses else ()

    def hook_notes(self) -> list[str]:
        """On hooks that are called for masked rows too."""
        return list(hook_notes(self.network, self.record.tensor_hooks))


def _pad_id(network: nn.Module) -> int:
    """The id of a padding token, of a network that says so as those of Hugging Face do; else 0."""
    pad = getattr(getattr(network, "config", None), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0


def _check_logits(logits: object, rows: int, outputs: Sequence[int] | None = None) -> None:
    """That there are so many rows of logits, or of other outputs, each of the shape `outputs`.

    Raises:
        ValueError: there are not.
    """
    fits = isinstance(logits, Tensor) and logits.dim() >= 2 and logits.shape[0] == rows
    if not fits or (outputs is not None and logits.shape[1:] != outputs):  # type: ignore[attr-defined]
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if isinstance(logits, Tensor) and tuple(logits.shape) == (rows, rows) and outputs is not None:
            raise ValueError(
                "Expected the network to return logits of shape (batch, classes), but it returns one for each pair "
                "of samples, as contrastive losses take them: samples of other subsets would be among the classes. "
                "Compute the similarities of each subset yourself, and give them to agm.fused_modulate."
            )
        inner = "..., classes" if outputs is None else ", ".join(map(str, outputs))
        raise ValueError(
            f"Expected the network to return logits of shape (batch, classes) with {rows} rows, or of shape (batch, "
            f"{inner}), but got {got}. If it returns more than logits, wrap it in a module that returns them alone."
        )


def _stack(joint: Tensor, masked: Tensor, rows: Rows) -> Tensor:
    _check_logits(joint, rows.batch)
    _check_logits(masked, len(rows), joint.shape[1:])
    # One copy of all rows; autocast may have left the two passes in different dtypes.
    return torch.cat([masked.to(joint.dtype), joint]).view(len(rows.subsets) + 1, *joint.shape)


def _summands(joint: Tensor, terms: Mapping[int, Tensor], rows: Rows) -> AdditiveLogits:
    """Of the terms (B + 1, ..., C) of a sum those of the present rows, and those of the absent ones."""
    _check_logits(joint, rows.batch)
    if type(terms) is Stacked and terms.modalities == tuple(range(rows.modalities)):
        _check_logits(terms.first, rows.batch + 1, joint.shape[1:])
        return AdditiveLogits(terms.stacked.to(joint.dtype), joint)
    for few in terms.values():
        _check_logits(few, rows.batch + 1, joint.shape[1:])
    size = (rows.batch + 1, *joint.shape[1:])
    bits = range(rows.modalities)
    ordered = [terms[bit].to(joint.dtype) if bit in terms else joint.new_zeros(size) for bit in bits]
    return AdditiveLogits(torch.stack(ordered), joint)
