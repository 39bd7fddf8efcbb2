"""Values of Python, one a sample: lists of lengths, captions, boxes or dicts, and numpy arrays."""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._inputs.trees import leaves_of, mapped

__all__ = ["Samples", "has_samples", "holds_tensors", "is_listed", "is_sequence", "unwrap"]

_SCALARS = (bool, int, float, complex, str, bytes, type(None), np.generic)


class Samples:
    """A sequence with a value a sample, whatever these are, as one leaf of the arguments.

    Args:
        values: those of the samples, in their order.
    """

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def taken(self, rows: Sequence[range | slice]) -> "Samples":
        """Those of some rows, one range after another."""
        if isinstance(self.values, np.ndarray):  # by index, so that a mask goes with them
            every = np.arange(len(self))
            return Samples(self.values[np.concatenate([every[part.start : part.stop] for part in rows])])
        values = self.values if isinstance(self.values, (list, tuple)) else list(self.values)
        return Samples(self._like(chain.from_iterable(values[part.start : part.stop] for part in rows)))

    def repeated(self, times: int, part: range | None = None) -> "Samples":
        """All of them so many times, or the rows in `part` of these."""
        every = self.taken([range(len(self))] * times)
        return (every if part is None else every.taken([part])).copied()

    def copied(self) -> "Samples":
        """The same values, so that whoever writes to the tensors, lists and dicts among them leaves these alone."""
        if isinstance(self.values, (np.ndarray, range, array, bytearray)):
            return self
        return Samples(self._like(one if isinstance(one, _SCALARS) else mapped(_clone, one) for one in self.values))

    def _like(self, values: Any) -> Any:
        """A container of the same kind."""
        if isinstance(self.values, range):
            return list(values)
        if isinstance(self.values, array):
            return array(self.values.typecode, values)
        return type(self.values)(values)


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def is_sequence(value: Any) -> bool:
    """Whether it may have an item a sample: text has none, nor have shapes, and fields with names of their own."""
    if isinstance(value, (str, bytes, memoryview, torch.Size)) or hasattr(value, "_fields"):
        return False
    return isinstance(value, (list, tuple, deque, array, Sequence))


def holds_tensors(value: Any) -> bool:
    """Whether there are tensors or arrays with rows in a structure of Python's."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 0
    if isinstance(value, Mapping):
        return any(map(holds_tensors, value.values()))
    if isinstance(value, (range, array)) or not isinstance(value, (list, tuple, deque, Sequence)):
        return False
    return not isinstance(value, (str, bytes)) and any(not isinstance(x, _SCALARS) and holds_tensors(x) for x in value)


def is_listed(value: Any) -> bool:
    """Whether it is an array, or a sequence of Python's values, which may be one a sample."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    if isinstance(value, tuple):  # of others an encoder's arguments may be made
        return type(value) is tuple and len(value) > 0 and all(isinstance(one, _SCALARS) for one in value)
    if not is_sequence(value) or not len(value):
        return False
    return all(isinstance(one, _SCALARS) for one in value) or not any(
        isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(list(value))
    )


def has_samples(*trees: Any) -> bool:
    """Whether pytrees hold values of Python that are one a sample."""
    for tree in trees:
        if isinstance(tree, Tensor):
            continue
        for leaf in leaves_of(tree):
            if isinstance(leaf, Samples):
                return True
    return False


def unwrap(value: Any) -> Any:
    """A pytree with lists and arrays in the place of `Samples`; itself, if it has none."""
    if not has_samples(value):
        return value
    return mapped(lambda leaf: leaf.values if isinstance(leaf, Samples) else leaf, value)
