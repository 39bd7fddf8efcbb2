"""Masked passes of a network whose encoders are named by path, without rewriting its forward.

The network's own forward runs on the batch of all masked inputs, so everything around the encoders (batch
sizes, padding masks, skip connections) is what it would be anyway. Only the encoders' forwards are replaced
for that pass: from the rows that they are given they pick the present ones and an absent one, encode these,
and answer with the features put in place for every row.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.absent import batch_size, is_rows
from agm._inputs.arguments import Arguments, Binding
from agm._inputs.rows import check_others, combine, copied
from agm._lazy_rows.decision import SHARDED, Deferral, fusion_line, known, noted, noted_as, some_subsets
from agm._lazy_rows.tensor import CannotDefer, Deferred, Rows, current, outcome
from agm._module_state.compiled import compiled_part, is_compiled
from agm._module_state.eval_mode import evaluation, mixes_samples
from agm._module_state.replace_forward import answering
from agm._one_pass.choice import (
    Choice,
    Choices,
    JointCall,
    Passes,
    apart,
    checked,
    choose,
    in_common,
    refused,
)
from agm._one_pass.numeric_check import untouched
from agm._passes.encoder_calls import Answer, EncoderRows, Recorder, unjoined
from agm._passes.plan import Line, encoder_lines
from agm.distributed import Peers, is_sharded

__all__ = ["InterceptedPasses"]

_verified: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()  # network -> the settings that it passed
_compared: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()  # encoder -> how its features differ by mode
_OTHER_ROWS = "in the masked pass it is given other rows than the modality's"
_TOGETHER = "processes that train together look at a first batch at other moments"


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
            if choice.is_one and (self.peers.together or encoder in unjoined):
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
        recorders = given.recorders.values()
        compares = not self.shared and any(r.is_whole and r.encoder not in _compared for r in recorders)
        compares |= any(recorder.is_open for recorder in recorders)
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

    def _compare(self, name: str, answer: Answer, batch: int) -> None:
        """Remembers whether an encoder's features are the same in both passes."""
        if not answer.compares:
            return
        if answer.differs is not None and self.passes == "one":
            raise refused(name, answer.differs)
        if answer.differs is not None or batch > 1:
            _compared[answer.encoder] = answer.differs

    def _recorder(self, name: str, choice: Choice, arguments: Arguments, absent: Any) -> Recorder:
        encoder, inputs = self.network.get_submodule(self.paths[name]), arguments.inputs[name]
        # Of one sample, or where the absent rows are not all the same, more rows are encoded than these.
        alone = all(leaf.shape[0] == 1 for leaf in pytree.tree_leaves(absent) if is_rows(leaf))
        alone = alone and batch_size({name: inputs}) > 1 and not _has_rows(arguments.others, arguments.rest)

        def agrees() -> bool:
            own = (name, choice, encoder, inputs, absent, self.passes, self.peers)
            return checked(*own, shared=self.shared).is_one

        call = JointCall(encoder, choice, inputs, absent, True, agrees) if choice.is_one and alone else None
        return Recorder(encoder, call, choice.how in ("shared", "joined"), not self.shared)

    def _joint(
        self, arguments: Arguments, absent: Mapping[str, Any], choices: Mapping[str, Choice]
    ) -> tuple[Tensor, dict[str, Recorder]]:
        """The joint pass as it is, and what each encoder was called with."""
        recorders = {name: self._recorder(name, choice, arguments, absent[name]) for name, choice in choices.items()}
        with answering({recorder.encoder: recorder for recorder in recorders.values()}):
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

    recorders: dict[str, Recorder]

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
        self.compared: dict[str, Answer] = {}
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
            answers[name] = Answer(recorder, encoded, shares, check, foreign, compares, deferred)
        network = self.passes.network
        with evaluation(network), answering({answer.encoder: answer for answer in answers.values()}):
            logits = self.passes.binding.call(Arguments(inputs, others, rest, self.placed))
        for answer in answers.values():
            answer.finish()
        self.compared.update({name: answer for name, answer in answers.items() if answer.compares})
        return logits

    def _rows(self, name: str, rows: Rows, shares: bool) -> EncoderRows:
        leaves = [leaf for leaf in pytree.tree_leaves(self.few[name]) if is_rows(leaf)]
        own = any(leaf.shape[0] == 2 * rows.batch for leaf in leaves) and rows.batch > 1
        here = None if self.here is None else self.here[name]
        bit, per_sample = self.passes.modalities.index(name), self.extra_rows or own
        mixes = per_sample and bool(mixes_samples(self.recorders[name].encoder))
        return EncoderRows(name, bit, rows, per_sample, shares, here, mixes)


def _has_rows(*trees: Any) -> bool:
    return any(is_rows(leaf) for leaf in pytree.tree_leaves(trees))


def _few(present: Any, absent: Any) -> Any:
    """(B, ...) and (1 or B, ...) one after another."""
    return pytree.tree_map(lambda leaf, row: torch.cat([leaf, row]) if is_rows(leaf) else leaf, present, absent)


def _written(rows: Rows, bit: int, few: Any) -> Any:
    return pytree.tree_map(lambda leaf: rows.expanded(bit, leaf) if is_rows(leaf) else leaf, few)


def _deferred(rows: Rows, bit: int, few: Any) -> Any:
    return pytree.tree_map(lambda leaf: Deferred.of(rows, bit, leaf) if is_rows(leaf) else leaf, few)


def _probe(inputs: dict[str, Any]) -> dict[str, list[Tensor]]:
    """Makes the floating masked inputs, in place of what they are, something whose influence autograd can tell."""
    probes: dict[str, list[Tensor]] = {}
    for name, value in inputs.items():
        found = [leaf for leaf in pytree.tree_leaves(value) if is_rows(leaf) and leaf.is_floating_point()]
        probes[name] = [leaf.requires_grad_() if leaf.is_leaf else leaf for leaf in found]
        inputs[name] = copied(value)  # not leaves of autograd, so that the network may write to them
    return probes
