"""The masked passes: the network's logits for every subset of its modalities."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.absent import Absent, absent_group, absent_input, batch_size, check_absent
from agm._inputs.arguments import Arguments, Binding, names_of
from agm._inputs.rows import check_others, copied, lacking, masked_arguments
from agm._lazy_rows.tensor import Rows
from agm._module_state.compiled import is_compiled
from agm._module_state.eval_mode import evaluation, mixes_samples, mode_dependent_layers, unfrozen
from agm._module_state.hooks import ForwardHooks
from agm._module_state.modules import submodules
from agm._one_pass.choice import Passes, refused
from agm._passes.absent_features import AbsentFeatures
from agm._passes.by_path import InterceptedPasses
from agm._passes.by_protocol import FactorisedPasses, is_factorised
from agm._passes.chunks import Chunks
from agm._passes.options import Masked, MaskedOptions
from agm._passes.outputs import Output, Outputs
from agm._passes.plan import Plan, fusion_lines
from agm._passes.record import Record
from agm.distributed import Peers
from agm.modulation.additive import AdditiveLogits
from agm.modulation.checks import check_presence
from agm.shapley.sampling import SubsetSample
from agm.shapley.weights import proper_subsets

__all__ = ["MaskedPasses", "masked_logits"]


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
        self.network = network
        self.options = options
        self.shared = options.shared
        self.absent = check_absent(options.absent, self.modalities)
        self.binding = Binding(network, modalities, options.inputs)
        self.outputs = Outputs(options.output, options.class_dim)
        self.chunks = Chunks(options.max_rows, options.checkpoint)
        if absent_features is None:
            absent_features = AbsentFeatures(options.absent_gradient, options.absent_refresh)
        self.absent_features = absent_features
        self._parted: InterceptedPasses | FactorisedPasses | None = None  # None: the network is one piece
        if encoders:
            if self.chunks:
                raise ValueError(
                    "Expected neither `max_rows` nor `checkpoint` with the paths of `encoders`: there the network's "
                    "forward runs once, on all masked rows. Leave `encoders` out, or give the network `encoders` and "
                    "`fuse`, whose fusion then runs in chunks."
                )
            self._parted = InterceptedPasses(
                network, self.binding, self.outputs, options, peers, record, self.absent_features
            )
        elif own:
            self._parted = FactorisedPasses(
                network, self.binding, self.outputs, options, self.chunks, peers, record, self.absent_features
            )
        elif not options.absent_gradient:
            raise ValueError(
                "Expected argument `absent_gradient` to be True for a network of one piece, of which nobody knows what "
                "an absent modality's features are, but got False. Name the encoders in `encoders`."
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
        self, arguments: Arguments, present: Tensor | None = None, sample: SubsetSample | None = None
    ) -> tuple[Any, Tensor | Mapping[int, Tensor], Rows]:
        """As `apart`, with the joint pass's output as the network returned it."""
        batch = batch_size(arguments.inputs)
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
        run = self._parted or self._whole
        hooks = None if torch.compiler.is_compiling() else ForwardHooks(submodules(self.network))
        output, masked = run(arguments, rows, absent, here, hooks)
        return output, masked, rows

    def _as_paths(self, parted: FactorisedPasses) -> InterceptedPasses | FactorisedPasses:
        """The passes of a network whose forward is not quite its encoders and `fuse`: its encoders named by path."""
        paths = {module: path for path, module in self.network.named_modules()}
        found = {name: paths.get(encoder, "") for name, encoder in parted.encoders().items()}
        if self.chunks or not all(found.values()) or is_compiled(self.network):
            return parted
        options = replace(self.options, encoders=found)
        known = (parted.peers, self.record, self.absent_features)
        return InterceptedPasses(self.network, self.binding, self.outputs, options, *known)

    @staticmethod
    def put_together(joint: Tensor, masked: Tensor | Mapping[int, Tensor], rows: Rows) -> Tensor | AdditiveLogits:
        """What a call returns, from what `apart` does."""
        if isinstance(masked, Tensor):
            return _stack(joint, masked, rows)
        return _summands(joint, masked, rows)

    def stacked(
        self, arguments: Arguments, present: Tensor | None = None, sample: SubsetSample | None = None
    ) -> Tensor:
        """As a call, but always (2**M - 1, B, C), or (R, B, C)."""
        logits = self(arguments, present, sample)
        return logits if isinstance(logits, Tensor) else logits.stacked(sample)

    def joint(self, arguments: Arguments, present: Tensor | None = None) -> Any:
        """The network's output, with absent inputs where samples lack a modality."""
        if present is not None:
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
        found = {}
        for name, x in arguments.inputs.items():
            if isinstance(self.binding.carriers[name], tuple) and self.binding.batch is None:
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
            with unfrozen(self.network):
                return Plan(self.modalities, masked, tuple(self._parted.plan(subsets)), (note,))
        note = (
            'No encoders are named, so all masked inputs go through the whole network. Name them, encoders={"audio": '
            '"path.in.the.network", ...}, or give the network `encoders` and `fuse`: then each encoder sees 2 B + 1 '
            "rows, or B + 1 with masked='shared' or where nothing depends on the mode, for any number of modalities."
        )
        lines = fusion_lines("network", self.modalities, self.chunks.describe(self.network), subsets)
        return Plan(self.modalities, masked, tuple(lines), (note,))

    def _whole(
        self,
        arguments: Arguments,
        rows: Rows,
        absent: Mapping[str, Any],
        here: Mapping[str, Tensor] | None = None,
        hooks: ForwardHooks | None = None,
    ) -> tuple[Any, Tensor]:
        batch, subsets = rows.batch, rows.subsets
        if self.shared and (layers := mode_dependent_layers(self.network)):
            raise ValueError(
                "Expected `encoders` with masked='shared': there are no features to share in a network that is one "
                f"piece, and some of its layers depend on the mode ({', '.join(layers[:5])}). Name the encoders, or "
                "use masked='exact'."
            )
        check_others(arguments, batch)
        if self.chunks or mixes_samples(self.network):
            parts = self.chunks.parts(self.network, batch, len(subsets))
            # Copies, since the network may write to its inputs in the joint pass, after which the chunks are built.
            inputs, others, rest = copied(tuple(arguments[:3]))
            kept, kept_absent = Arguments(inputs, others, rest, arguments.placed), copied(absent)
            joint = self._joint(arguments, hooks)

            def call(part: range | None) -> Any:
                masked = masked_arguments(kept, kept_absent, batch, subsets, part)
                return self.outputs.logits(self.binding.call(masked))

            return joint, self.chunks.run(self.network, call, parts, hooks)
        masked = masked_arguments(arguments, absent, batch, subsets)
        joint = self._joint(arguments, hooks)
        with evaluation(self.network, hooks):
            return joint, self.outputs.logits(self.binding.call(masked))

    def _joint(self, arguments: Arguments, hooks: ForwardHooks | None) -> Any:
        with nullcontext() if hooks is None else hooks.watched():
            output = self.binding.call(arguments)
        self.outputs.logits(output)  # refused here, where it is the joint pass's
        return output


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
    for few in terms.values():
        _check_logits(few, rows.batch + 1, joint.shape[1:])
    nothing = joint.new_zeros(rows.batch + 1, *joint.shape[1:])
    ordered = [terms[bit].to(joint.dtype) if bit in terms else nothing for bit in range(rows.modalities)]
    return AdditiveLogits([few[:-1] for few in ordered], [few[-1:] for few in ordered], joint)


# What calls of the function have found out: there is no object that could keep it from one to the next.
_records: WeakKeyDictionary[nn.Module, dict[object, Record]] = WeakKeyDictionary()


def _record_of(network: nn.Module, options: MaskedOptions) -> Record | None:
    if not isinstance(network, nn.Module):
        return None
    paths = tuple((options.encoders or {}).items())
    key = (options.modalities, options.masked, paths, options.passes, options.absent_gradient, str(options.output))
    return _records.setdefault(network, {}).setdefault(key, Record())


def masked_logits(
    network: nn.Module,
    inputs: Mapping[str, Any],
    *,
    masked: Masked = "exact",
    absent: Mapping[str, Absent] | None = None,
    encoders: Mapping[str, str] | None = None,
    output: Output | None = None,
    class_dim: int | None = None,
    passes: Passes = "auto",
    max_rows: int | None = None,
    checkpoint: bool = False,
    absent_gradient: bool = True,
    arguments: Mapping[str, Any] | None = None,
    present: Tensor | None = None,
    sample: SubsetSample | None = None,
) -> Tensor:
    """The network's logits for every non-empty subset of its modalities, in one batched masked pass.

    The joint pass runs first, in the network's present mode, as without masking. In "exact" mode, which is what the
    published AGM computes, the masked passes follow in eval mode (batch norm on its running statistics,
    no dropout) with gradients, all subsets as one batch. In "shared" mode the masked passes take the joint pass's
    own features for the modalities that are present: one encoder pass in all, and the same as "exact" where no layer
    depends on the mode. Afterwards every submodule is in the mode in which it was, also when forward raises. Without
    gradients, or in eval mode, the same numbers come out.

    How much is computed:

    - a network that offers `encoders` (a mapping of modules) and `fuse(features) -> logits`, or whose encoders are
      named in `encoders`: each encoder runs on the B rows of the joint pass and besides (exact) on the B present rows
      and one absent row, or (shared) on the absent row alone. Where an absent input is not the same for every sample
      (a padding mask that stays, say) it runs on B absent rows. Of the rest, what acts on one modality, or linearly on
      several (a layer on their concatenation, a sum), runs on these few rows too; every subset is written out only
      where modalities meet in another way, and from there on. If the logits are a sum over the modalities (late fusion)
      that is nowhere, for up to 16 of them. A first batch compares this with rows written out. Compiled, a fusion is
      known to be a sum only if the network declares it by `unimodal_logits(features)`, modality -> its term;
    - any other network: one pass on the (2**M - 2) * B masked inputs (one a subset, if a batch norm without running
      statistics would mix them).

    In eval mode the network must treat samples alike and apart, for those of all subsets go through it together.
    What forward does around an encoder (`no_grad`, autocast) holds in its masked passes too, except in a compiled step.
    The network's own activation checkpointing is left out of the masked passes, and of a joint pass whose features are
    shared: what would be recomputed in the backward would not be what they had.

    An encoder need not run twice; what it has beside the B rows of the joint pass can go with these as one batch:

    - in shared mode, and in exact mode where no layer depends on the mode, the features of the joint pass are those of
      the present rows, and the absent row goes with it;
    - else, in exact mode, the B present rows and the absent one go with it.

    Where an encoder is named by path, it is one batch if forward gives it the modality's input as it is, and if no
    other processes train with this one.

    In such a batch only norms, dropouts and attention tell the rows apart: the first B have the statistics of the
    batch, which update the running ones, and are dropped out; the rest come after that update, in eval mode. The joint
    logits are those of a pass by itself to rounding, since kernels may sum in another order for other numbers of rows.

    This needs a proof: modules of torch that treat rows alike, or of a user whose code can be read and names nothing
    that might not; no hooks, no dropout inside a recurrent layer. A first batch compares the numbers with those of two
    passes. `passes` says what to do with it.

    Args:
        network: a module whose forward takes the modalities by keyword, or by position in the order of `inputs` if
            it bears none of their names, and returns logits (B, C), or (B, ..., C).
        inputs: modality -> tensor (B, ...) or pytree of tensors (features with a padding mask, ids with lengths).
        masked: "exact" or "shared"; for a modality without a named encoder the latter is the former.
        output, class_dim: where the network's output holds the logits, as in `agm.AGM`.
        absent: modality -> what an absent input is: a number (a pad id), a tensor (one row), a callable of the
            present input, which returns its like or one row of it, or a pytree like the input of numbers, tensors
            and None (stays as it is). Zeros by default; in a pytree floating tensors become zeros while booleans and
            one-dimensional integers stay.
        encoders: modality -> path of the submodule that encodes it. Some modalities may be left out. An encoder may
            take and return pytrees, have its samples in any dimension, see several rows a sample (frames), and be
            called several times; it must depend on its own modality alone, which the first batch verifies.
        passes: of an encoder: "auto": one, where it is proved to be the same and is faster, which it is on CUDA, and
            on a CPU where no norm would take the batch apart; "one": raises where it is not proved; "two": the rows of
            the masked passes have one of their own, as they always have where the step is compiled.
        absent_gradient: whether a gradient flows into an encoder through rows in which its modality is absent, as
            published. False: the features of absent rows are constants, for networks whose encoders are known.
        max_rows: at most so many masked rows at a time go through a network of one piece, or through `fuse` (each
            encoder still sees its rows at once). This bounds what the forward needs while it runs; what it keeps for
            the backward it keeps for all rows, unless `checkpoint` is set. None: all at once.
        checkpoint: drop the activations of each masked chunk and recompute them in the backward, in eval mode and
            with the same running statistics: together with `max_rows` only one chunk's activations live at a time,
            for one more forward of the masked rows. In a compiled graph this is left to the compiler.
        arguments: other keyword arguments of forward. Tensors in them have one row a sample.
        present: (B, M) bool on the device of the inputs, which samples have which modalities; None: all have all.
            Where a sample lacks one, the input is replaced by an absent one, in the joint pass too, whatever it holds.
        sample: subsets that `agm.sample_subsets` drew, to be computed instead of all.

    Returns:
        (2**M - 1, B, C): row i holds the logits of the subset with bitmask i + 1 (bit m set: modality m present), the
        last row the joint logits. (R, B, C) with a `sample` of R subsets, in its order. Logits of more dimensions keep
        them: (2**M - 1, B, ..., C).

    Raises:
        ValueError: a modality that forward does not take, a path that does not exist, inputs of different lengths, an
            encoder that is not called or mixes modalities, an output that is not logits, "shared" for a network of one
            piece with mode-dependent layers, `max_rows` < 1, or less than B where a batch norm has no running
            statistics, such a batch norm in an encoder or in a network with `encoders`, one pass that is not known to
            be right, `max_rows` or `checkpoint` together with `encoders`.
        TypeError: `network` is not a module, `inputs` no mapping, or an unexpected argument.
    """
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"Expected argument `inputs` to map modalities to their inputs, but got a {type(inputs).__name__}. "
            'Name them, for example {"audio": a, "visual": v}.'
        )
    options = MaskedOptions(
        modalities=tuple(inputs),
        masked=masked,
        absent=absent,
        encoders=encoders,
        output=output,
        class_dim=class_dim,
        passes=passes,
        max_rows=max_rows,
        checkpoint=checkpoint,
        absent_gradient=absent_gradient,
    )
    peers = Peers(False)
    record = None if torch.compiler.is_compiling() else _record_of(network, options)
    run = MaskedPasses(network, options, peers, record)
    if sample is not None and sample.modalities != len(run.modalities):
        raise ValueError(
            f"Expected argument `sample` to be of the {len(run.modalities)} modalities of `inputs`, but got one of "
            f"{sample.modalities}."
        )
    return run.stacked(run.binding.split((), {**inputs, **(arguments or {})}), present, sample)
