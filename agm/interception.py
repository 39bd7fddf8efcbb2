"""Masked passes of a network whose encoders are named by path, without rewriting its forward.

The network's own forward runs on the batch of all masked inputs, so everything around the encoders (batch
sizes, padding masks, skip connections) is what it would be anyway. Only the encoders' forwards are replaced
for that pass: from the rows that they are given they pick the present ones and an absent one, encode these,
and answer with the features put in place for every row.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.absent import batch_size, is_opaque, is_rows
from agm.answering import answering
from agm.binding import Arguments, Binding
from agm.checkpointing import without_checkpointing
from agm.compiled import compiled_part, is_compiled
from agm.deferral import SHARDED, Deferral, fusion_line, known, noted, noted_as, some_subsets
from agm.deferred import CannotDefer, Deferred, Rows, current, outcome, written
from agm.modes import evaluation, mixes_samples
from agm.onepass import (
    OWN_WAY,
    Choice,
    Choices,
    JointCall,
    Passes,
    apart,
    checked,
    choose,
    in_common,
    refused,
    surroundings,
)
from agm.peers import Peers, is_sharded
from agm.plan import Line, encoder_lines
from agm.rowcheck import close, untouched
from agm.subsets import blocks, check_others, combine, copied, doubled, tile

__all__ = ["InterceptedPasses"]

_unjoined: WeakSet[nn.Module] = WeakSet()  # encoders that are given other rows in the masked pass than expected
_verified: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()  # network -> the settings that it passed
_compared: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()  # encoder -> how its features differ by mode
_OTHER_ROWS = "in the masked pass it is given other rows than the modality's"
_TOGETHER = "processes that train together look at a first batch at other moments"
_ROUNDING = 1e-3  # what equal rows may differ by, relative to the largest element: mixed rows differ by far more


def _check_encoders(network: nn.Module, encoders: Mapping[str, str], modalities: tuple[str, ...]) -> None:
    """That each path leads to an encoder of its own.

    Raises:
        TypeError: a path is not a string.
        ValueError: a name is no modality, a path leads nowhere, or two modalities share an encoder.
    """
    found: dict[str, nn.Module] = {}
    for name, path in encoders.items():
        if name not in modalities:
            raise ValueError(f"Expected argument `encoders` to name modalities among {modalities}, but got {name!r}.")
        if not isinstance(path, str):
            raise TypeError(
                f"Expected `encoders[{name!r}]` to be a path in the network, such as 'audio_net', but got a "
                f"{type(path).__name__}."
            )
        try:
            found[name] = network.get_submodule(path)
        except AttributeError as error:
            children = ", ".join(child for child, _ in network.named_children())
            raise ValueError(
                f"Expected `encoders[{name!r}]` to be the path of a submodule, but the network has no {path!r}. "
                f"Its children are: {children}."
            ) from error
        if found[name] is network:
            raise ValueError(f"Expected `encoders[{name!r}]` to be a part of the network, but got all of it.")
    for name, encoder in found.items():
        inside = set(encoder.modules())
        for other, module in found.items():
            if other != name and module in inside:
                raise ValueError(
                    f"Expected the encoders to have no module in common, but those of `{name}` and `{other}` do. "
                    "Leave both out of `encoders`: the masked inputs then go through the whole network."
                )


@dataclass
class _Call:
    """One call of an encoder in the joint pass."""

    input_sizes: list[torch.Size | None]
    output_sizes: list[torch.Size | None]
    output: Any


class InterceptedPasses:
    """The joint pass as it is; then all masked inputs as one batch, the encoders on present rows and absent ones.

    What an encoder is given in the masked pass is known only when it is given it. Where the joint pass gives it the
    modality's input as it is, though, all its rows can go through it there, once a first batch has shown that they are
    those of the masked pass. Elsewhere, where no layer of it depends on the mode, the features of the joint pass serve
    the present rows, once a first batch has shown that they are the same.
    """

    def __init__(
        self,
        network: nn.Module,
        binding: Binding,
        encoders: Mapping[str, str],
        shared: bool,
        passes: Passes,
        peers: Peers,
    ) -> None:
        self.network = network
        self.binding = binding
        self.modalities = binding.modalities
        _check_encoders(network, encoders, self.modalities)
        self.paths = dict(encoders)
        self.shared = shared
        self.passes = passes
        self.peers = peers
        self._choices = Choices()

    @property
    def _key(self) -> object:
        return (tuple(self.paths.items()), self.shared, self.peers.together)

    def encoders(self) -> dict[str, nn.Module]:
        """Modality -> its encoder, of those that are named."""
        return {name: self.network.get_submodule(path) for name, path in self.paths.items()}

    def plan(self, subsets: int) -> list[Line]:
        """The passes of a training step, after the first one, which may compare numbers."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        encoders = self.encoders()
        lines = []
        for name, choice in self._choose(encoders, device).items():
            lines += encoder_lines(self.network, name, encoders[name], self._choices(name, choice))
        left = [f"`{name}`" for name in self.modalities if name not in self.paths]
        note = f", with what encodes {', '.join(left)}" if left else ""
        rest = fusion_line("rest of the network", self.modalities, self.network, note, subsets, self._key)
        return [*lines, *rest]

    def _choose(self, encoders: Mapping[str, nn.Module], device: torch.device) -> dict[str, Choice]:
        if is_compiled(self.network):
            raise ValueError(
                "Expected a network with the paths of `encoders` not to be compiled as a whole, since its encoders "
                "answer with what they have computed before, for which it would be compiled anew each time. Compile "
                "the encoders (network.audio_net.compile()), or give it `encoders` and `fuse` and compile the model."
            )
        self._check_apart(encoders)
        found = {}
        for name, encoder in encoders.items():
            unsplit = partial(in_common, self.network, encoders, name)
            choice = choose(name, encoder, self.passes, device, unsplit, shared=self.shared)
            if choice.is_one and (self.peers.together or encoder in _unjoined):
                why = _TOGETHER if self.peers.together else _OTHER_ROWS
                choice = apart(name, self.passes, why, shared=choice.how == "joined")
            reason = _compared.get(encoder) if choice.how in ("shared", "joined") and not self.shared else None
            if reason is not None and self.passes == "one":
                raise refused(name, reason)
            found[name] = choice if reason is None else Choice("two", reason)
        return found

    def _check_apart(self, encoders: Mapping[str, nn.Module]) -> None:
        """That no layer puts rows of several subsets together; shared encoders see nothing but absent rows.

        Raises:
            ValueError: there are some.
        """
        mixing = mixes_samples(self.network)
        if self.shared and mixing:
            inside = [f"{path}." for path in self.paths.values()]
            mixing = [name for name in mixing if not any(f"{name}.".startswith(path) for path in inside)]
        if mixing:
            raise ValueError(
                "Expected a network with the paths of `encoders` to treat samples apart in eval mode, but "
                f"`{mixing[0]}` normalises with the statistics of the batch there too, in which the rows of several "
                "subsets would mix. Give it running statistics, or leave `encoders` out: each subset then goes through "
                "the network by itself."
            )

    def __call__(
        self,
        arguments: Arguments,
        rows: Rows,
        absent: Mapping[str, Any],
        here: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | Mapping[int, Tensor]]:
        """Joint logits and masked logits, as `FactorisedPasses` returns them."""
        check_others(arguments, rows.batch)
        device = next(leaf.device for leaf in pytree.tree_leaves(arguments.inputs) if is_rows(leaf))
        choices = self._choose(self.encoders(), device)
        # Copies, since the network may write to its inputs in the joint pass.
        few = {name: _few(x, absent[name]) for name, x in arguments.inputs.items()}
        given = _Given(self, few, device, copied(arguments.others), copied(arguments.rest), arguments.placed, here)
        joint, given.recorders = self._joint(arguments, absent, choices)
        if torch.compiler.is_compiling():
            return joint, cast(Tensor, given.logits(rows, deferred=False))
        return joint, self._masked(given, rows)

    def _masked(self, given: "_Given", rows: Rows) -> Tensor | Mapping[int, Tensor]:
        """The masked logits of all rows, after a first batch has shown on some of them what they may come from."""
        if not self._is_checked(given, rows.batch):
            self._check(given, replace(rows, subsets=some_subsets(rows.modalities)))
        found = known(self.network, self._key)
        if found is None or found.how == "rows" or not rows.batch:
            return cast(Tensor, given.logits(rows, deferred=False))
        try:
            logits = current(given.logits(rows, deferred=True))
        except CannotDefer as error:  # on a way through the network that it has not taken before
            noted_as(self.network, self._key, Deferral("rows", str(error)))
            return cast(Tensor, given.logits(rows, deferred=False))
        return outcome(logits)

    def _is_checked(self, given: "_Given", batch: int) -> bool:
        """Whether a batch like this one has been looked at, as closely as this one could be.

        With one sample rows in a wrong order cannot be told from right ones, and without gradients not their origin: a
        look at such a batch will do for its like, but not for others. Processes that train together look until all have
        had a batch that shows everything, since they must all look or none.
        """
        done = _verified.get(self.network, ())
        full = (self._key, True, True)
        like = full if self.peers.together else (self._key, torch.is_grad_enabled(), batch > 1)
        compares = not self.shared and any(r.is_whole and r.encoder not in _compared for r in given.recorders.values())
        if compares and not like[-1]:  # one sample leaves this open
            return like in done
        return (like in done or full in done) and not compares

    def _check(self, given: "_Given", some: Rows) -> None:
        """What the encoders are given, and whether rows may be deferred, on the rows of some subsets."""
        weights = list(self.network.parameters())
        with untouched(self.network, weights):
            probed, expected = given.checked(some)
        least = self.peers.least(some.batch, given.device)
        for name, answer in given.compared.items():
            self._compare(name, answer, least)
        _verified.setdefault(self.network, set()).add((self._key, probed, least > 1))
        if not least or any(weight.is_meta for weight in weights):
            return
        if any(map(is_sharded, self.network.modules())):
            noted_as(self.network, self._key, SHARDED)
            return
        if (part := compiled_part(self.network, self.encoders().values())) is not None:
            noted_as(self.network, self._key, Deferral("rows", f"`{part}` is compiled"))
            return
        with untouched(self.network, weights):
            noted(self.network, self._key, expected, lambda: given.logits(some, deferred=True), self.peers)

    def _compare(self, name: str, answer: "_Answer", batch: int) -> None:
        """Remembers whether an encoder's features are the same in both passes."""
        if not answer.compares:
            return
        if answer.differs is not None and self.passes == "one":
            raise refused(name, answer.differs)
        if answer.differs is not None or batch > 1:
            _compared[answer.encoder] = answer.differs

    def _recorder(self, name: str, choice: Choice, arguments: Arguments, absent: Any) -> "_Recorder":
        encoder, inputs = self.encoders()[name], arguments.inputs[name]
        # Of one sample, or where the absent rows are not all the same, more rows are encoded than these.
        alone = all(leaf.shape[0] == 1 for leaf in pytree.tree_leaves(absent) if is_rows(leaf))
        alone = alone and batch_size({name: inputs}) > 1 and not _has_rows(arguments.others, arguments.rest)

        def agrees() -> bool:
            own = (name, choice, encoder, inputs, absent, self.passes, self.peers)
            return checked(*own, shared=self.shared).is_one

        call = JointCall(encoder, choice, inputs, absent, True, agrees) if choice.is_one and alone else None
        return _Recorder(encoder, call, choice.how in ("shared", "joined"), not self.shared)

    def _joint(
        self, arguments: Arguments, absent: Mapping[str, Any], choices: Mapping[str, Choice]
    ) -> tuple[Tensor, dict[str, "_Recorder"]]:
        """The joint pass as it is, and what each encoder was called with."""
        recorders = {name: self._recorder(name, choice, arguments, absent[name]) for name, choice in choices.items()}
        # Features are shared as they are: a reentrant checkpoint would hand them out without their gradient.
        plainly = without_checkpointing() if self.shared else nullcontext()
        with plainly, answering({recorder.encoder: recorder for recorder in recorders.values()}):
            joint = self.binding.call(arguments)
        for name, recorder in recorders.items():
            if not recorder.calls:
                raise ValueError(
                    f"Expected the network's forward to call the encoder of `{name}`, but it did not. Name in "
                    "`encoders` a submodule that forward calls as a module (not one of its methods)."
                )
            self._choices.note(name, choices[name], recorder.outcome(choices[name]))
        return joint, recorders


class _Given:
    """What the masked passes of one step are given: the same for any of its rows.

    Attributes:
        recorders: modality -> what its encoder did in the joint pass.
        compared: modality -> the answer whose features were compared with those of the joint pass.
    """

    recorders: dict[str, "_Recorder"]

    def __init__(
        self,
        passes: InterceptedPasses,
        few: Mapping[str, Any],
        device: torch.device,
        others: list[Any],
        rest: dict[str, Any],
        placed: tuple[str, ...],
        here: Mapping[str, Tensor] | None,
    ) -> None:
        self.passes = passes
        self.few = few
        self.device = device
        self.others, self.rest, self.placed = others, rest, placed
        self.here = here if passes.shared else None
        self.compared: dict[str, _Answer] = {}
        # Arguments beside the modalities can reach an encoder, and then every absent row is another one.
        self.extra_rows = _has_rows(others, rest)

    def logits(self, rows: Rows, deferred: bool) -> Any:
        """What the network makes of the masked rows, its encoders answering for them."""
        place = _deferred if deferred else _written
        inputs = {name: place(rows, bit, few) for bit, (name, few) in enumerate(self.few.items())}
        return self._run(rows, inputs, deferred=deferred)

    def checked(self, rows: Rows) -> tuple[bool, Any]:
        """`logits` of written rows, with a look at what the encoders are given; whether its origin was looked at."""
        inputs = {name: _written(rows, bit, few) for bit, (name, few) in enumerate(self.few.items())}
        probes = _probe(inputs) if torch.is_grad_enabled() else {}
        logits = self._run(rows, inputs, probes, check=True)
        return bool(probes), logits.detach() if isinstance(logits, Tensor) else logits

    def _run(
        self,
        rows: Rows,
        inputs: dict[str, Any],
        probes: Mapping[str, list[Tensor]] | None = None,
        *,
        check: bool = False,
        deferred: bool = False,
    ) -> Any:
        others, rest = self.others, self.rest
        if self.extra_rows:
            everywhere = [True] * len(rows.subsets)
            others, rest = (combine(tree, tree, everywhere) for tree in (others, rest))
        answers = {}
        for name, recorder in self.recorders.items():
            exact = recorder.is_whole and not self.passes.shared
            compares = check and exact and recorder.encoder not in _compared
            shares = recorder.is_whole and (not exact or _compared.get(recorder.encoder, "") is None)
            encoded = self._rows(name, rows, shares)
            foreign = [probe for other, found in (probes or {}).items() if other != name for probe in found]
            answers[name] = _Answer(recorder, encoded, shares, check, foreign, compares, deferred)
        network = self.passes.network
        with evaluation(network), answering({answer.encoder: answer for answer in answers.values()}):
            logits = self.passes.binding.call(Arguments(inputs, others, rest, self.placed))
        for answer in answers.values():
            answer.finish()
        self.compared.update({name: answer for name, answer in answers.items() if answer.compares})
        return logits

    def _rows(self, name: str, rows: Rows, shares: bool) -> "_Rows":
        leaves = [leaf for leaf in pytree.tree_leaves(self.few[name]) if is_rows(leaf)]
        own = any(leaf.shape[0] == 2 * rows.batch for leaf in leaves) and rows.batch > 1
        here = None if self.here is None else self.here[name]
        return _Rows(name, self.passes.modalities.index(name), rows, self.extra_rows or own, shares, here)


def _has_rows(*trees: Any) -> bool:
    return any(is_rows(leaf) for leaf in pytree.tree_leaves(trees))


def _few(present: Any, absent: Any) -> Any:
    """(B, ...) and (1 or B, ...) one after another."""
    return pytree.tree_map(lambda leaf, row: torch.cat([leaf, row]) if is_rows(leaf) else leaf, present, absent)


def _written(rows: Rows, bit: int, few: Any) -> Any:
    return pytree.tree_map(lambda leaf: rows.expanded(bit, leaf) if is_rows(leaf) else leaf, few)


def _deferred(rows: Rows, bit: int, few: Any) -> Any:
    return pytree.tree_map(lambda leaf: Deferred.of(rows, bit, leaf) if is_rows(leaf) else leaf, few)


class _Recorder:
    """Runs the encoder and notes the sizes that went in and out, and the output if it will be shared.

    `call` is what takes the rows of the masked pass with it, if anything does.
    """

    def __init__(self, encoder: nn.Module, call: JointCall | None, keep_output: bool, exact: bool) -> None:
        self.encoder = encoder
        self.call = call
        self.forward = encoder.forward if call is None else call
        self.keep_output = keep_output
        self.around = surroundings() if keep_output and exact else None
        self.is_whole = keep_output  # whether the outputs are those of a masked pass, gradients included
        self.calls: list[_Call] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.around is not None and surroundings() != self.around:
            self.is_whole = False
        output, kept = self.forward(*args, **kwargs), None
        if self.keep_output:
            output, kept = doubled(output)
        self.calls.append(_Call(_sizes((args, kwargs)), _sizes(output), kept))
        return output

    def known(self, rows: "_Rows") -> Any:
        """Features of `rows`, if they came with the joint pass's."""
        if self.call is None or len(self.calls) != 1 or self.encoder in _unjoined:
            return None
        present = 0 if self.call.chosen.how == "joined" else rows.batch
        return self.call.more if (rows.present, rows.absent, rows.spare) == (present, 1, 0) else None

    def outcome(self, chosen: Choice) -> Choice:
        """What the choice came to."""
        one = self.call is not None and self.call.is_done and len(self.calls) == 1
        if chosen.how == "two" or (chosen.how == "shared" and self.is_whole) or (chosen.is_one and one):
            return chosen
        return Choice("shared" if self.is_whole else "two", OWN_WAY)


class _Answer:
    """Encodes present and absent rows only, and answers for all."""

    def __init__(
        self,
        recorder: _Recorder,
        rows: "_Rows",
        shared: bool,
        check: bool,
        foreign: list[Tensor],
        compares: bool,
        deferred: bool,
    ) -> None:
        self.encoder = recorder.encoder
        self.forward = recorder.forward
        self.rows = rows
        self.shared = shared
        self.check = check
        self.foreign = foreign  # inputs of the other modalities, which must not reach the encoder
        self.compares = compares  # what is encoded here with what the joint pass had
        self.differs: str | None = None
        self.deferred = deferred
        self.pending = list(reversed(recorder.calls))
        self.known = recorder.known(rows)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.pending:
            raise self.rows.refusal("is called more often in the masked pass than in the joint pass")
        call = self.pending.pop()
        leaves, structure = self._leaves("takes", (args, kwargs))
        if len(leaves) != len(call.input_sizes):
            raise self.rows.refusal("takes other arguments in the masked pass than in the joint pass")
        picked, found = [], False
        for leaf, size in zip(leaves, call.input_sizes, strict=True):
            own = leaf.alone(self.rows.bit) if isinstance(leaf, Deferred) else None
            if own is not None:
                picked.append(self.rows.pick_few(*own))
                found = True
                continue
            leaf = written(leaf)
            dim, rows_a_sample = self.rows.find(leaf, size)
            if dim is None:
                picked.append(leaf)
                continue
            if self.check:
                self.rows.verify(leaf, dim, rows_a_sample)
                self._verify_origin(leaf)
            picked.append(self.rows.pick(leaf, dim, rows_a_sample))
            found = True
        if self.rows.batch and not found:
            raise self.rows.refusal("takes no tensor that grows with the batch")
        if self.known is not None and not self.check:
            return self._in_place(self.known, call)
        args, kwargs = pytree.tree_unflatten(picked, structure)
        output = self.forward(*args, **kwargs)
        if self.known is not None and not close(self.known, output):
            _unjoined.add(self.encoder)
        return self._in_place(output, call)

    def _in_place(self, output: Any, call: _Call) -> Any:
        leaves, structure = self._leaves("returns", output)
        if len(leaves) != len(call.output_sizes):
            raise self.rows.refusal("returns another structure in the masked pass than in the joint pass")
        if self.compares and not all(map(self.rows.is_same, leaves, pytree.tree_leaves(call.output))):
            self.differs = "its features are others in eval mode"
        joint = pytree.tree_leaves(call.output) if self.shared else [None] * len(leaves)
        expanded = [
            self.rows.expand(leaf, size, own, self.deferred)
            for leaf, size, own in zip(leaves, call.output_sizes, joint, strict=True)
        ]
        return pytree.tree_unflatten(expanded, structure)

    def _leaves(self, does: str, tree: Any) -> tuple[list[Any], pytree.TreeSpec]:
        leaves, structure = pytree.tree_flatten(tree, is_leaf=is_opaque)
        opaque = next((leaf for leaf in leaves if is_opaque(leaf)), None)
        if opaque is not None:
            raise self.rows.refusal(f"{does} a {type(opaque).__name__}, whose rows cannot be told apart")
        return leaves, structure

    def _verify_origin(self, leaf: Tensor) -> None:
        """That what the encoder is given has not been computed from another modality."""
        if not leaf.requires_grad or not self.foreign:
            return
        with torch.enable_grad():  # the network may encode without
            total = leaf.sum()
        reached = torch.autograd.grad(total, self.foreign, allow_unused=True, retain_graph=True)
        if any(gradient is not None for gradient in reached):
            raise self.rows.refusal("is given something computed from another modality")

    def finish(self) -> None:
        if self.pending:
            raise self.rows.refusal("is called less often in the masked pass than in the joint pass")


class _Rows:
    """Where the rows of one modality's encoder lie, in what it is given and in what it returns.

    The dimension of the samples is the one that grows when the batch does: comparing the joint pass (B samples)
    with the masked pass ((2**M - 2) * B), and what is encoded there with B, finds it wherever it is, and how many
    rows (frames, patches) a sample has.
    """

    def __init__(
        self, name: str, bit: int, rows: Rows, per_sample: bool, shared: bool, here: Tensor | None = None
    ) -> None:
        batch = rows.batch
        self.name = name
        self.bit = bit
        self.all = rows
        self.here = here  # (B,), the samples that have the modality, if what the others have is not to be shared
        self.batch = batch
        self.absent = batch if per_sample else 1
        self.present = 0 if shared else batch
        # As many rows as in the joint pass would hide the dimension of the samples: then one more is encoded.
        self.spare = int(self.present + self.absent == batch)

    @cached_property
    def is_present(self) -> list[bool]:
        return blocks(self.bit, self.all.subsets)

    def refusal(self, what: str) -> ValueError:
        return ValueError(
            f"Expected the encoder of `{self.name}` to depend on the rows of its own modality only, but it {what}. "
            f"Leave `{self.name}` out of `encoders`: its masked inputs then go through it as one batch."
        )

    def find(self, leaf: Any, joint: torch.Size | None) -> tuple[int | None, int]:
        """The dimension of the samples in an input, and rows a sample; None if it has none."""
        if joint is None or not is_rows(leaf) or leaf.shape == joint:
            return None, 0
        grown = _changed(leaf.shape, joint)
        if len(grown) != 1 or leaf.shape[grown[0]] != joint[grown[0]] * len(self.all.subsets):
            raise self.refusal(
                f"is given {tuple(leaf.shape)} for {len(self.all.subsets)} times the samples of {tuple(joint)}"
            )
        if joint[grown[0]] % self.batch:
            raise self.refusal(f"is given {joint[grown[0]]} rows for {self.batch} samples")
        return grown[0], joint[grown[0]] // self.batch

    def _block(self, leaf: Tensor, dim: int, index: int, rows: int, samples: int) -> Tensor:
        return leaf.narrow(dim, index * self.batch * rows, samples * rows)

    def pick(self, leaf: Tensor, dim: int, rows: int) -> Tensor:
        """Of a tensor with `rows` rows a sample: those to encode, present ones first."""
        first_present, first_absent = self.is_present.index(True), self.is_present.index(False)
        parts = [
            self._block(leaf, dim, first_present, rows, self.present),
            self._block(leaf, dim, first_absent, rows, self.absent),
            self._block(leaf, dim, first_absent, rows, self.spare),
        ]
        return torch.cat(parts, dim)

    def pick_few(self, few: Tensor, rows: int) -> Tensor:
        """`pick` from rows that are deferred."""
        present, absent = few[: self.batch * rows], few[self.batch * rows :]
        absent = tile(absent, self.absent * rows)
        return torch.cat([present[: self.present * rows], absent, absent[: self.spare * rows]])

    def verify(self, leaf: Tensor, dim: int, rows: int) -> None:
        """That the rows are what `pick` takes them for; the only synchronisation, on the first batch."""
        present = self._block(leaf, dim, self.is_present.index(True), rows, self.batch)
        absent = self._block(leaf, dim, self.is_present.index(False), rows, self.absent)
        absent = tile(absent, present.shape[dim], dim)
        for index, here in enumerate(self.is_present):
            if not _same(self._block(leaf, dim, index, rows, self.batch), present if here else absent):
                raise self.refusal(
                    "is given rows that depend on the other modalities, or in another order than the samples'"
                )

    def expand(self, leaf: Any, joint: torch.Size | None, shared: Tensor | None, deferred: bool) -> Any:
        """What the encoder returned for the picked rows, put in place for every row, or deferred.

        `joint` is the size of the joint pass's output and `shared` that output, if it serves the present rows.
        """
        if joint is None or not is_rows(leaf) or leaf.shape == joint:
            return leaf
        encoded = self.present + self.absent + self.spare
        changed = _changed(leaf.shape, joint)
        if len(changed) != 1 or leaf.shape[changed[0]] * self.batch != joint[changed[0]] * encoded:
            raise self.refusal(
                f"returns {tuple(leaf.shape)} for {encoded} samples where it returned {tuple(joint)} for {self.batch}"
            )
        dim = changed[0]
        rows = joint[dim] // self.batch
        present = leaf.narrow(dim, 0, joint[dim]) if shared is None else shared
        absent = leaf.narrow(dim, self.present * rows, self.absent * rows)
        if self.here is not None:
            here = self.here.repeat_interleave(rows).view([-1 if d == dim else 1 for d in range(leaf.dim())])
            present = torch.where(here, present, tile(absent, joint[dim], dim))
        if deferred and dim == 0:
            return Deferred.of(self.all, self.bit, torch.cat([present, absent]), rows)
        absent = tile(absent, joint[dim], dim)
        return torch.cat([present if here else absent for here in self.is_present], dim)

    def is_same(self, leaf: Any, joint: Any) -> bool:
        """Whether the joint pass returned what was encoded for the present rows."""
        if is_rows(leaf) and is_rows(joint):
            for dim in _changed(leaf.shape, joint.shape):
                leaf = leaf.narrow(dim, 0, joint.shape[dim])
        return close(joint, leaf)


def _changed(size: torch.Size, joint: torch.Size) -> list[int]:
    return [d for d in range(len(joint)) if size[d] != joint[d]] if len(size) == len(joint) else []


def _probe(inputs: dict[str, Any]) -> dict[str, list[Tensor]]:
    """Makes the floating masked inputs, in place of what they are, something whose influence autograd can tell."""
    probes: dict[str, list[Tensor]] = {}
    for name, value in inputs.items():
        found = [leaf for leaf in pytree.tree_leaves(value) if is_rows(leaf) and leaf.is_floating_point()]
        probes[name] = [leaf.requires_grad_() if leaf.is_leaf else leaf for leaf in found]
        inputs[name] = copied(value)  # not leaves of autograd, so that the network may write to them
    return probes


def _sizes(tree: Any) -> list[torch.Size | None]:
    return [leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(tree)]


def _same(left: Tensor, right: Tensor) -> bool:
    if not left.is_floating_point():
        return torch.equal(left, right)
    left, right = left.detach().float(), right.detach().float()
    scale = float(right.nan_to_num(0.0, 0.0, 0.0).abs().amax()) if right.numel() else 0.0
    return torch.allclose(left, right, rtol=0.0, atol=_ROUNDING * scale, equal_nan=True)
