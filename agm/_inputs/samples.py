"""Values of Python, one a sample: lists of lengths, captions or ids, and numpy arrays."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._inputs.trees import leaves_of

if TYPE_CHECKING:
    from agm._inputs.arguments import Arguments

__all__ = ["Samples", "has_samples", "is_listed", "unwrap", "unwrapped", "wrapped"]

_SCALARS = (bool, int, float, complex, str, bytes, type(None), np.generic)


class Samples:
    """A list, a tuple or an array with a value a sample, as one leaf of the arguments.

    Args:
        values: those of the samples, in their order.
    """

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def taken(self, rows: Sequence[range | slice]) -> "Samples":
        """Those of some rows, one range after another."""
        parts = [self.values[part.start : part.stop] for part in rows]
        if isinstance(self.values, np.ndarray):
            return Samples(np.concatenate(parts))
        return Samples(type(self.values)(chain.from_iterable(parts)))

    def repeated(self, times: int, part: range | None = None) -> "Samples":
        """All of them so many times, or the rows in `part` of these."""
        every = self.taken([range(len(self))] * times)
        return every if part is None else every.taken([part])


def is_listed(value: Any) -> bool:
    """Whether it is a list, a tuple or an array of Python's values, which may be one a sample."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return type(value) in (list, tuple) and len(value) > 0 and all(isinstance(one, _SCALARS) for one in value)


def has_samples(*trees: Any) -> bool:
    """Whether pytrees hold values of Python that are one a sample."""
    for tree in trees:
        if isinstance(tree, Tensor):
            continue
        for leaf in leaves_of(tree):
            if isinstance(leaf, Samples):
                return True
    return False


def wrapped(arguments: "Arguments") -> "Arguments":
    """The arguments with `Samples` in the place of lists, tuples and arrays that have a value a sample."""
    if _are_tensors(arguments):
        return arguments
    count = _count(arguments.inputs)

    def wrap(value: Any) -> Any:
        if not is_listed(value) or (len(value) != count and not isinstance(value, np.ndarray)):
            return value
        return Samples(value)

    return _everywhere(wrap, arguments)


def unwrapped(arguments: "Arguments") -> "Arguments":
    """The arguments as the network is given them."""
    if _are_tensors(arguments) or not has_samples(arguments):
        return arguments

    return _everywhere(lambda leaf: leaf.values if isinstance(leaf, Samples) else leaf, arguments)


def _are_tensors(arguments: "Arguments") -> bool:
    """Whether there is nothing but a tensor a modality, as nearly always."""
    if arguments.others or arguments.rest:
        return False
    return all([isinstance(value, Tensor) for value in arguments.inputs.values()])


def unwrap(value: Any) -> Any:
    """A pytree with lists and arrays in the place of `Samples`; itself, if it has none."""
    if not has_samples(value):
        return value
    return _mapped(lambda leaf: leaf.values if isinstance(leaf, Samples) else leaf, value)


def _everywhere(function: Any, arguments: "Arguments") -> "Arguments":
    return arguments._replace(
        inputs={name: _mapped(function, value) for name, value in arguments.inputs.items()},
        others=[_mapped(function, value) for value in arguments.others],
        rest={name: _mapped(function, value) for name, value in arguments.rest.items()},
    )


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, Tensor):  # nearly always
        return value
    return pytree.tree_map(function, value, is_leaf=is_listed)


def _count(inputs: dict[str, Any]) -> int:
    """The number of samples, of the first tensor that has rows; -1 where there is none."""
    for value in inputs.values():
        for leaf in leaves_of(value):
            if isinstance(leaf, Tensor) and leaf.dim():
                return leaf.shape[0]
    return -1
