"""What is known of one network under one setting of its masked passes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agm._lazy_rows.decision import Deferral
from agm._module_state.structure import Structure, Ways
from agm._one_pass.choice import Choices
from agm._one_pass.known import Known
from agm._passes.encoder_counts import Several
from agm._passes.warned import warn

__all__ = ["Record"]

_Found = TypeVar("_Found")


@dataclass
class Record:
    """What has been found out from a network's batches so far; it belongs to its masked passes.

    Attributes:
        looked: kinds of batches in which what encoders were given has been looked at.
        deferral: whether its rows may be deferred; None: nobody has looked.
        follows: whether what tensors come from has to be followed.
        all_rows: modalities of which an encoder was given rows that others went into.
        other_rows: modalities whose encoder was given other rows in a masked pass than in the joint pass, though as far
            as one could see it was given its input.
        absent_rows: modality -> how many absent rows its encoder took in the last batch, in batches and beside them.
        several: modality, of those whose encoder is called several times, for it or for others -> the rows of its
            calls in the last batch.
        ordered: modalities of encoders of which a pass of all rows shows the order of their calls before those of one
            subset each.
        looks: how many batches are yet to be looked at for absent rows that amplify.
        tensor_hooks: whether forward has been seen to give tensors hooks.
        order: encoder -> the modalities of its calls, in their order.
        dims: encoder -> of each of its calls the dimension of the samples in what it returns, leaf by leaf, as far as
            samples have lacked modalities.
        calls_fuse: whether the forward of a network with `encoders` and `fuse` calls `fuse`; None: nobody has looked.
        by_path: whether such a forward does something else, that came to the same so far: it runs for masked rows too.
        autocasts: modality -> under which autocast its encoder has run, for encoders that are not watched.
        rows_meet: how rows of several subsets meet in a pass, in words, so that each subset has one of its own; empty:
            they do not, as far as one has seen.
        writes_inputs: whether the joint pass has been seen to write to what it is given.
        ways: what a network is made of -> on which ways through it rows of several subsets do not meet: pairs of
            functions of torch that ran one after the other.
        steps: how many there have been.
        looks_again: in which of them what has been seen of rows that do not meet is looked at anew.
        one_pass: what has become of encoders in one pass.
        choices: what became of the choices that were made before a batch.
    """

    looked: set[object] = field(default_factory=set)
    deferral: Deferral | None = None
    follows: bool = False
    all_rows: set[str] = field(default_factory=set)
    other_rows: set[str] = field(default_factory=set)
    absent_rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    several: dict[str, Several] = field(default_factory=dict)
    ordered: set[str] = field(default_factory=set)
    looks: int = 3
    tensor_hooks: bool = False
    order: dict[str, list[str]] = field(default_factory=dict)
    dims: dict[str, list[list[int | None]]] = field(default_factory=dict)
    calls_fuse: bool | None = None
    by_path: bool = False
    autocasts: dict[str, Any] = field(default_factory=dict)
    rows_meet: str = ""
    writes_inputs: bool = False
    ways: dict[object, Ways] = field(default_factory=dict)
    steps: int = 0
    looks_again: int = 10
    one_pass: Known = field(default_factory=Known)
    choices: Choices = field(default_factory=Choices)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "ways": {}}  # functions and modules by their identity

    def doubting(self, run: Callable[..., _Found], *args: Any) -> _Found:
        """What passes come to that look anew whether rows meet: by now a capacity may be reached, or a branch taken.

        That is in steps 10, 20, 30, 45, ...: whenever half as many have passed as before, so that looks cost next to
        nothing.
        """
        self.looks_again += self.looks_again // (1 if self.looks_again < 20 else 2)
        for ways in self.ways.values():
            ways.clear()
        for apart in (*self.one_pass.seen.values(), self.one_pass.apart):
            apart.clear()
        before = self.rows_meet, len(self.one_pass.mixes)
        found = run(*args)
        if (self.rows_meet, len(self.one_pass.mixes)) != before:
            warn(
                f"In step {self.steps} rows of several subsets have met in the network, in functions that did not mix "
                "them when they were looked at before, so that masked logits of some steps since then may be wrong. "
                "From now on they have passes of their own. Compute within samples, whatever the others are, or set "
                "`max_rows` to the size of your batches, without `encoders`.",
            )
        return found

    def ways_through(self, structure: Structure) -> Ways:
        """Those of `ways` through a network as it is now."""
        return structure.kept_in(self.ways, "ways of all subsets", set)
