"""What earlier batches have shown of the encoders of a network in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agm._module_state.structure import Structure

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
        apart: modalities in whose encoder rows do not meet, as a pass that followed them or a look has shown.
        seen: what a network is made of -> what was `apart` in it.
    """

    refused: dict[object, str] = field(default_factory=dict)
    runs: dict[object, Sequence[Any]] = field(default_factory=dict)
    passed: set[object] = field(default_factory=set)
    missed: dict[object, int] = field(default_factory=dict)
    depends: set[str] = field(default_factory=set)
    mixes: set[str] = field(default_factory=set)
    apart: set[str] = field(default_factory=set)
    seen: dict[object, set[str]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "runs": {}, "seen": {}}  # functions, and tensors and modules by their identity

    def holds_for(self, structure: Structure | None) -> None:
        """What is said of rows that do not meet is said of modules as they are: of others nobody has seen it.

        Args:
            structure: of the network as it is now; None in a step that is compiled.
        """
        if structure is not None:
            self.apart = structure.chosen("rows apart", lambda: self._seen_in(structure.marks()))

    def _seen_in(self, marks: object) -> set[str]:
        if len(self.seen) >= _STRUCTURES:
            self.seen.clear()
        return self.seen.setdefault(marks, set())

    def treats_apart(self, name: str) -> None:
        """A pass has followed the rows of a modality through its encoder, and they did not meet."""
        if name not in self.mixes:  # in another kind of batch they may have
            self.apart.add(name)

    def refuse(self, kind: object, reason: str) -> None:
        """One pass was tried and could not be told to be right: it is not tried again, or not often."""
        if kind in self.passed:
            self.missed[kind] = self.missed.get(kind, 0) + 1
        if self.missed.get(kind, _OFTEN) >= _OFTEN:
            self.refused[kind] = reason


_OFTEN = 3
_STRUCTURES = 8
