"""How many rows an encoder takes that is called several times in each pass of the network, for a plan."""

from collections.abc import Mapping, Sequence

from agm._one_pass.joint_call import JointCall

__all__ = ["EncoderCounts", "Several"]

Several = tuple[tuple[int, int], tuple[int, int]]
"""Rows in the joint pass and in the masked passes, each in batches and beside them."""


class EncoderCounts:
    """The rows of all calls of an encoder in the masked passes of a step, by modality."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, int]] = {}

    def add(self, name: str, batches: int, beside: int = 0) -> None:
        """A call has taken so many, in batches and beside them."""
        before = self._rows.get(name, (0, 0))
        self._rows[name] = before[0] + batches, before[1] + beside

    def of_each(
        self, names: Mapping[int, str], order: Sequence[str], calls_with: Mapping[int, JointCall], batch: int
    ) -> dict[str, Several]:
        """Of each modality.

        Args:
            names: bit -> modality, of those that it encodes.
            order: the modality of each call.
            calls_with: what has taken rows of the masked passes with it in the joint pass, by bit.
            batch: B.
        """
        found = {}
        for bit, name in names.items():
            calls, went = order.count(name), 0
            with_rows = calls_with.get(bit)
            if with_rows is not None and with_rows.is_done:
                calls, went = calls + (with_rows.chosen.how == "split"), with_rows.absent
            joint = (calls + 1, 0) if went == batch > 1 else (calls, went)
            found[name] = joint, self._rows.get(name, (0, 0))
        return found
