"""Tensors that share memory, so that who writes to one writes to the other."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["SharedMemory", "shares_memory"]

_MANY = 1 << 20


class SharedMemory:
    """Watches what a function returns for writes that reach more than the tensor that is written to.

    What returns its input or a view of it, as `nn.Identity` and `nn.Flatten` do, hands on the memory that it was given.

    Attributes:
        is_all_given: whether nothing that was returned has memory of its own.
    """

    def __init__(self) -> None:
        self.is_all_given = True
        self._given: list[tuple[Tensor, int]] = []
        self._returned: list[tuple[list[Tensor], list[int]]] = []

    def note(self, given: Any, returned: Any) -> None:
        """A call has returned."""
        outputs = _tensors(returned)
        if not outputs:
            return
        memory = {_memory(x) for x in outputs}
        inputs = [x for x in _tensors(given) if _memory(x) in memory]
        self.is_all_given &= memory == {_memory(x) for x in inputs}
        if inputs:
            self._given += [(x, x._version) for x in (*inputs, *outputs)]
        elif len(memory) < len(outputs):
            self._returned.append((outputs, [x._version for x in outputs]))

    def inputs_written(self) -> bool:
        """Whether somebody has written to an input that was returned, or to what was returned of it."""
        return any([x._version != version for x, version in self._given])

    def outputs_written(self) -> bool:
        """Whether somebody has written to a tensor of which another one that was returned is a part."""
        return any(
            [x._version for x in outputs] != versions and _overlap(outputs) for outputs, versions in self._returned
        )


def shares_memory(returned: Any, given: Iterable[Tensor]) -> bool:
    """Whether a tensor that was returned is memory of one that was given."""
    memory = {_memory(x) for x in given}
    return any([_memory(x) in memory for x in _tensors(returned)])


def _tensors(tree: Any) -> list[Tensor]:
    leaves = [tree] if isinstance(tree, Tensor) else pytree.tree_leaves(tree)
    return [x for x in leaves if isinstance(x, Tensor) and x.layout is torch.strided and not x.is_inference()]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _overlap(tensors: Sequence[Tensor]) -> bool:
    """Whether two of them have an element in common: halves of one tensor share its memory, but no element."""
    return any(
        _memory(a) == _memory(b) and bool(torch.isin(_places(a), _places(b)).any()) for a, b in combinations(tensors, 2)
    )


def _places(tensor: Tensor) -> Tensor:
    """Where the elements of a tensor lie, of a large one those of its first row."""
    if tensor.numel() > _MANY:
        tensor = tensor[:1]
    places = torch.tensor(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(size) * stride
    return places.flatten()
