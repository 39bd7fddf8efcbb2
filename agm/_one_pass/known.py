"""What earlier batches have shown of the encoders of a network in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agm._module_state.structure import Structure, Ways

__all__ = ["Known"]


@dataclass
class Known:
    """What has become of encoders in one pass, in the batches so far.

    Attributes:
        refused: kind of call -> why it cannot be one pass.
        runs: kind of call, and its rows -> what runs in it, where modules read their mode.
        passed: kinds of calls that have been one pass.
        missed: kind of call -> how often what has been one pass could not be.
        depends: modalities whose encoder depends on the mode though none of its layers says so.
        mixes: modalities in whose encoder rows may meet.
        apart: modality, and which call of its encoder -> the ways through it on which a look has shown that rows do not
            meet: pairs of functions that ran one after the other.
        doubted: those of `apart` that are to be looked at again, since a batch has gone another way.
        seen: what a network is made of -> what was `apart` in it.
    """

    refused: dict[object, str] = field(default_factory=dict)
    runs: dict[object, Sequence[Any]] = field(default_factory=dict)
    passed: set[object] = field(default_factory=set)
    missed: dict[object, int] = field(default_factory=dict)
    depends: set[str] = field(default_factory=set)
    mixes: set[str] = field(default_factory=set)
    apart: dict[tuple[str, int], Ways] = field(default_factory=dict)
    doubted: set[tuple[str, int]] = field(default_factory=set)
    seen: dict[object, dict[tuple[str, int], Ways]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "runs": {}, "seen": {}}  # functions, and tensors and modules by their identity

    def holds_for(self, structure: Structure | None) -> None:
        """What is said of rows that do not meet is said of modules as they are: of others nobody has seen it.

        Args:
            structure: of the network as it is now; None in a step that is compiled.
        """
        if structure is not None:
            self.apart = structure.kept_in(self.seen, "rows apart", dict)

    def meet(self, call: tuple[str, int], look: Callable[[], bool]) -> bool:
        """Whether rows may meet in a call of an encoder, as a `look` tells where none has, or where one is doubted.

        Args:
            call: the modality, and which call of its encoder.
            look: see `rows_meet`.
        """
        name, _ = call
        if name not in self.mixes and (not self.apart.get(call) or call in self.doubted):
            if look():
                self.mixes.add(name)
            else:
                self.apart.setdefault(call, set())
            self.doubted.discard(call)
        return name in self.mixes

    def is_another(self, call: tuple[str, int], ways: Ways) -> bool:
        """Whether rows that were looked at went other ways through an encoder than those of now, which are noted."""
        known = self.apart.setdefault(call, set())
        before = len(known)
        known |= ways or {(0, 0)}
        return 0 < before < len(known)

    def refuse(self, kind: object, reason: str) -> None:
        """One pass was tried and could not be told to be right: it is not tried again, or not often."""
        if kind in self.passed:
            self.missed[kind] = self.missed.get(kind, 0) + 1
        if self.missed.get(kind, _OFTEN) >= _OFTEN:
            self.refused[kind] = reason


_OFTEN = 3
