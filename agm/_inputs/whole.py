"""Inputs whose rows are not those of the samples: packed sequences and graphs, items with offsets, patches."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from agm._inputs.trees import leaves_of, mapped

__all__ = ["Whole"]


class Whole:
    """A modality's input that a callable of the user makes absent as a whole, as one leaf of the arguments.

    Masked rows cannot be made of it, so that each subset has a pass of its own.

    Args:
        value: as the network is given it.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def absent(self, name: str, function: Callable[[Any], Any]) -> "Whole":
        """What the user's callable makes of it.

        Raises:
            ValueError: it wrote to its argument, or returned something of another kind.
        """
        before = _versions(self.value)
        found = function(self.value)
        if found is self.value or _versions(self.value) != before:
            raise ValueError(
                f"Expected the callable in `absent` for `{name}` to return a new {type(self.value).__name__}, but it "
                "wrote to its argument or returned it. Copy it before (`clone`, `_replace`, `copy.copy`)."
            )
        keys = None if not isinstance(self.value, Mapping) else self.value.keys()
        if not isinstance(found, type(self.value)) or (keys is not None and found.keys() != keys):
            raise ValueError(
                f"Expected the callable in `absent` for `{name}` to return a {type(self.value).__name__} like its "
                f"argument, but got {type(found).__name__}."
            )
        return Whole(found)

    def copied(self) -> "Whole":
        """One to whose tensors forward may write."""
        value = self.value
        if isinstance(value, nn.utils.rnn.PackedSequence):
            return Whole(value._replace(data=value.data.clone()))
        if not isinstance(value, Tensor) and callable(getattr(value, "clone", None)):
            return Whole(value.clone())
        return Whole(mapped(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value))


def _versions(value: Any) -> list[int]:
    held = value.to_dict() if callable(getattr(value, "to_dict", None)) else value
    held = tuple(held) if isinstance(held, nn.utils.rnn.PackedSequence) else held
    return [leaf._version for leaf in leaves_of(held) if isinstance(leaf, Tensor) and not leaf.is_inference()]
