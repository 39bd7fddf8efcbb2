"""An encoder's call in the joint pass that takes the rows of the masked passes with it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agm._inputs.absent import is_rows
from agm._inputs.rows import aligned, copied, doubled, stacked, with_whole
from agm._inputs.samples import has_samples
from agm._inputs.trees import leaves_of
from agm._module_state.modules import submodules
from agm._module_state.replace_forward import answering
from agm._module_state.threads import unguarded
from agm._one_pass.choice import GLOBAL_HOOKS, Choice, Passes, refused, why_split
from agm._one_pass.known import Known
from agm._one_pass.known_layers import KnownLayers
from agm._one_pass.layouts import Meeting, Unsplit
from agm._one_pass.row_split import DEPENDS, READS
from agm._one_pass.rules import put_together
from agm._one_pass.split_pass import ALIASES, Given, split_pass, what_runs
from agm._one_pass.synchronised import Exchanges, Reach
from agm._one_pass.two_passes import compared

__all__ = ["JointCall", "autocasts", "in_the_way", "surroundings", "versions"]

LEFT_OUT = "the joint pass leaves features of it out, so that norms would exchange gradients of the masked rows alone"
OWN_WAY = "the network encodes in its own way (in an activation checkpoint, without gradients, more than once)"

_PLAIN = (Tensor, nn.Parameter)


def in_the_way(inputs: Any) -> str | None:
    """What about a modality's input stands against one pass."""
    if type(inputs) in _PLAIN:
        return None
    if has_samples(inputs):
        return "its input holds values of Python"
    strange = [type(x) for x in leaves_of(inputs) if isinstance(x, Tensor) and type(x) not in _PLAIN]
    return f"its input is a {strange[0].__name__}, of which nothing is known" if strange else None


class JointCall:
    """An encoder's forward in the joint pass that takes the rows of the masked passes with it.

    Only a call with the modality's input as it is does, with gradients and under autocast as around the joint pass:
    what a network encodes otherwise (inside an activation checkpoint, say) is left to a second pass. So is what cannot
    be told to be the same in one pass, in whatever batch that happens.

    Args:
        name: of the modality.
        encoder: the module that it stands in for.
        chosen: "joined" or "split".
        inputs: the modality's.
        absent: its absent rows, one or B.
        shared: whether the joint pass's features serve the present rows whatever the mode.
        keeps: whether whoever has the joint pass run keeps its features.
        unsplit: tells why train rows and eval rows cannot be one batch in this network, if so.
        passes: what the user asks for.
        known: of earlier batches.
        network: of which the encoder is a part.
        layers: of an encoder that is a chain of known layers; None: it is not.
        around: the surroundings of the joint pass; None: those of now.
        copies: whether features of the joint pass and those that went with them are to be copied as one, if they are.
        aliases: whether features must be the input's own memory where the encoder returns that, as whoever has the
            input would see what is written to them.

    Attributes:
        planned: the choice as given.
        chosen: that, or "split" where "joined" was found to depend on the mode.
        reason: why it was no single pass; None: it was, or nobody has called.
        present: features of the present rows for the masked passes, if these are "joined" and not kept, or copied.
        few: a copy of the features of the present rows, and of those that went with them behind, if known layers have
            made them.
        rows: set if a second pass must follow: what it takes.
        dims: id of a tensor in `more` -> the dimension of its rows.
    """

    def __init__(
        self,
        name: str,
        encoder: nn.Module,
        chosen: Choice,
        inputs: Any,
        absent: Any,
        *,
        shared: bool,
        keeps: bool,
        unsplit: Callable[[], str | None],
        passes: Passes,
        known: Known,
        network: nn.Module,
        layers: KnownLayers | None = None,
        around: tuple[Any, ...] | None = None,
        copies: bool = True,
        aliases: bool = False,
    ) -> None:
        self.copies = copies
        self.aliases = aliases
        self.name = name
        self.encoder = encoder
        self.forward = unguarded(encoder.forward)
        self.planned = self.chosen = chosen
        self.shared = shared
        self.keeps = keeps
        self.inputs = inputs
        self.unsplit = unsplit
        self.passes = passes
        self.known = known
        self.network = network
        self.layers = layers
        self.before = (surroundings() if around is None else around, versions(inputs))
        if type(inputs) in _PLAIN:
            self.absent_rows, own, more = absent, [inputs], [absent]
        else:
            self.absent_rows = aligned(absent)
            own = [leaf for leaf in leaves_of(inputs) if is_rows(leaf)]
            more = [leaf for leaf in leaves_of(self.absent_rows) if is_rows(leaf)]
        self.batch: int = own[0].shape[0]
        self.absent: int = more[0].shape[0]
        self._with = dict(zip(map(id, own), more, strict=True))
        self._own = {id(leaf): leaf for leaf in own}
        self.is_done = False
        self.reason: str | None = None
        self.present: Any = None
        self._went_with: Any = None
        self.few: Tensor | None = None
        self.rows: Any = None
        self.dims: dict[int, int] = {}
        self._wholes: dict[int, Tensor] = {}
        self._reach: Reach | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.layers is not None and len(args) == 1 and not kwargs and self._is_direct(args, kwargs):
            known = self.of_known_layers(args[0])
            if known is not None:
                return known
        with answering({self.encoder: self.forward}):
            features = _NOT_YET
            exchanges = Exchanges(submodules(self.encoder))
            if not self.is_done:
                self.reason = OWN_WAY
                if self._is_direct(args, kwargs):
                    features = self._in_one((args, kwargs), exchanges)
            if features is _NOT_YET:
                with torch.set_grad_enabled(self.before[0][0]):
                    self.rows = self._apart()  # before the encoder may write to its input
                with exchanges.repeated():
                    output = self.encoder.forward(*args, **kwargs)
                exchanges.check()
                return output
            self.is_done, self.reason = True, None
            if self.chosen.how == "split" and exchanges.norms:
                self._reach = Reach(exchanges, features)
            if self.chosen.how == "split":
                return features
            if (whole := self._whole()) is not None:
                self._part(whole.clone())
            if whole is not None or self.keeps:
                return features
            handed, self.present = doubled(features)
            return handed

    def _whole(self) -> Tensor | None:
        """The features of all rows, if they are one tensor, and to be copied."""
        return self._wholes.get(id(self._went_with)) if self.copies else None

    def _part(self, few: Tensor) -> None:
        """Features of the present rows and of those that went with them, which are a copy of all."""
        with torch._C.DisableTorchFunction():  # a pass around may watch, and need not see this
            self.present, self._went_with = few[: self.batch], few[self.batch :]
            with_whole(few, self.present, self._went_with)
            self.dims[id(self._went_with)] = 0

    def of_known_layers(self, x: Any) -> Tensor | None:
        """Features of the joint pass, of an encoder in which no function need be followed; None: it is another one.

        Args:
            x: the modality's input, which nobody has written to, in the surroundings of the joint pass.
        """
        if self.layers is None or self.is_done or self.chosen.how != "joined" or any(GLOBAL_HOOKS):
            return None
        if x is not self.inputs or not self.layers.treat_apart(x.dim()):
            return None
        if self.aliases and not self.layers.makes:
            return None
        try:
            features = self.forward(put_together([x, self.absent_rows]))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # two passes will raise it for the rows that the user knows
            return None
        self.is_done, self.reason = True, None
        self.few = features.clone()
        if self.copies:
            self._part(self.few)
        elif not self.keeps:
            self.present = self.few[: self.batch]
        first: Tensor = features.narrow(0, 0, self.batch)
        return first

    def _in_one(self, given: Given, exchanges: Exchanges) -> Any:
        """Features of the joint pass, with those of the other rows; nothing, where a pass of their own must follow.

        Raises:
            ValueError: one pass is asked for.
        """
        if self.chosen.how == "joined" and not self.shared and self.name in self.known.depends:
            self._depend()
        kind = self._kind()
        self.reason = self.known.refused.get(kind)
        while self.reason is None:
            try:
                return self._passed(given, kind, exchanges)
            except Unsplit as error:
                self.reason = str(error)
                if isinstance(error, Meeting):
                    self.known.mixes.add(self.name)
            if self.reason == DEPENDS:
                self.known.depends.add(self.name)
                self.reason = self._depend()
            elif self.reason == READS and self._sized(kind) not in self.known.runs:
                self.reason = self._look(given, kind)
            if self.reason is not None:
                self.known.refuse(kind, self.reason)
            kind = self._kind()
        if self.passes == "one" and self.reason != ALIASES:  # which takes no time to speak of
            raise refused(self.name, self.reason)
        return _NOT_YET

    def _depend(self) -> str | None:
        """The encoder has been found to depend on the mode: its present rows go through it again."""
        self.chosen = Choice("split", why_split(self.passes))
        return self.unsplit()

    def _look(self, given: Given, kind: object) -> str | None:
        """What stands against an encoder whose modules read their mode."""
        try:
            runs = what_runs(self.encoder, given, self._more(), self.batch, self._count(), self.network)
        except Unsplit as error:
            return str(error)
        self.known.runs[self._sized(kind)] = runs
        return None

    def _passed(self, given: Given, kind: object, exchanges: Exchanges) -> Any:
        serves = self.chosen.how == "joined" and not self.shared
        expected = self.known.runs.get(self._sized(kind))
        is_new = kind not in self.known.passed
        check = compared(self.encoder, given, self._more(), self.network) if is_new else None
        features, self._went_with = split_pass(
            self.encoder,
            given,
            self._with,
            self.batch,
            self._count(),
            again=self.chosen.how == "split",
            serves=serves,
            expected=expected,
            exchanges=exchanges,
            aliases=self.aliases,
            network=self.network,
            dims=self.dims,
            wholes=self._wholes,
            check=check,
        )
        self.known.passed.add(kind)
        return features

    def _more(self) -> dict[int, Tensor]:
        """Tensor of the input, by its id -> the rows that go with it."""
        if self.chosen.how == "joined":
            return self._with
        return {key: torch.cat([self._own[key], absent]) for key, absent in self._with.items()}

    def _count(self) -> int:
        return self.absent + (self.batch if self.chosen.how == "split" else 0)

    def _kind(self) -> object:
        """What another verdict may hold for."""
        leaves = tuple((leaf.dim(), leaf.dtype) for leaf in self._own.values())
        modes = tuple(module.training for module in submodules(self.encoder))
        return self.name, self.chosen.how, self.shared, leaves, modes, str(self.before[0])

    def _sized(self, kind: object) -> object:
        """What another run may hold for: code that reads a number of rows may do otherwise with each."""
        return kind, self.batch, self._count()

    def _is_direct(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether it is given the modality's input, which nobody has written to."""
        if len(args) != 1 or kwargs or args[0] is not self.inputs or type(args[0]) not in _PLAIN:
            tensors = [leaf for leaf in leaves_of((args, kwargs)) if is_rows(leaf)]
            if not tensors or any(id(leaf) not in self._own for leaf in tensors):
                return False
        return (surroundings(), versions(self.inputs)) == self.before

    @property
    def more(self) -> Any:
        """Features of the rows that went with it: "joined": the absent ones; "split": the present ones and these."""
        if self._went_with is None and self.few is not None:
            with torch._C.DisableTorchFunction():  # a pass around may watch, and need not see this
                self._went_with = self.few[self.batch :]
                self.dims[id(self._went_with)] = 0
        return self._went_with

    def check_reach(self, joint: Tensor) -> None:
        """That norms exchange in the backward what they would in two passes; else a second pass follows.

        Args:
            joint: what the joint pass has returned.

        Raises:
            ValueError: one pass is asked for.
        """
        if not self.is_done or self._reach is None or self._reach.is_that_of(joint):
            return
        self.is_done, self.reason = False, LEFT_OUT
        self.known.refuse(self._kind(), LEFT_OUT)
        if self.passes == "one":
            raise refused(self.name, LEFT_OUT)

    def second_pass(self) -> Any:
        """The rows that the encoder has yet to see, in eval mode, if their features are not known; else None.

        Raises:
            RuntimeError: it has written to them.
        """
        if self.rows is None and not self.is_done:
            if versions(self.inputs) != self.before[1]:
                raise RuntimeError(
                    "Expected an encoder whose norms exchange statistics with other processes (SyncBatchNorm) not to "
                    "write to its input where the joint pass leaves its features out. Use passes='two'."
                )
            self.rows = self._apart()
        return self.rows

    def _apart(self) -> Any:
        return copied(self.absent_rows) if self.shared else stacked(self.inputs, self.absent_rows)

    def outcome(self) -> Choice:
        """What the choice came to."""
        if self.is_done:
            return self.chosen
        return Choice("shared" if self.shared else "two", self.reason or OWN_WAY)


_NOT_YET = object()


def versions(inputs: Any) -> list[tuple[int, int | None]]:
    """What is another one once a tensor of a pytree has been replaced or written to."""
    if type(inputs) in _PLAIN:
        return [(id(inputs), None if inputs.is_inference() else inputs._version)]
    leaves = leaves_of(inputs)
    return [(id(x), None if x.is_inference() else x._version) for x in leaves if isinstance(x, Tensor)]


def surroundings(compiling: bool = False) -> tuple[Any, ...]:
    """What a checkpoint, a `no_grad` or an autocast in the network changes; a graph has checkpoints as operations."""
    hooks = None if compiling else torch._C._autograd._top_saved_tensors_default_hooks(True)
    return torch.is_grad_enabled(), hooks, autocasts()


def autocasts() -> list[tuple[str, bool, torch.dtype]]:
    """Of each kind of device whether autocast is on, and its dtype."""
    on, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    return [("cpu", on("cpu"), dtype("cpu")), ("cuda", on("cuda"), dtype("cuda"))]
