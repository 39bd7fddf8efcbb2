"""Tensors that share memory, so that who writes to one writes to the other."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from agm._inputs.trees import leaves_of

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
        outputs = _by_memory(returned)
        if not outputs:
            return
        inputs = _by_memory(given)
        shared = outputs.keys() & inputs.keys()
        self.is_all_given &= len(shared) == len(outputs)
        if shared:
            for tensors in (*map(inputs.__getitem__, shared), *outputs.values()):
                self._given += [(x, x._version) for x in tensors]
            return
        for tensors in outputs.values():
            if len(tensors) > 1:
                self._returned.append((tensors, [x._version for x in tensors]))

    def inputs_written(self) -> bool:
        """Whether somebody has written to an input that was returned, or to what was returned of it."""
        return bool(self._given) and any([x._version != version for x, version in self._given])

    def outputs_written(self) -> bool:
        """Whether somebody has written to a tensor of which another one that was returned is a part."""
        return bool(self._returned) and any(
            [x._version for x in tensors] != versions and _overlap(tensors) for tensors, versions in self._returned
        )


def shares_memory(returned: Any, given: Iterable[Tensor]) -> bool:
    """Whether a tensor that was returned is memory of one that was given."""
    return not _by_memory(returned).keys().isdisjoint(_by_memory(list(given)))


def _by_memory(tree: Any) -> dict[int, list[Tensor]]:
    """Storage -> the tensors of a tree that lie in it."""
    found: dict[int, list[Tensor]] = {}
    for leaf in leaves_of(tree):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_inference():
            found.setdefault(leaf.untyped_storage()._cdata, []).append(leaf)
    return found


def _overlap(tensors: Sequence[Tensor]) -> bool:
    """Whether two tensors in one memory have an element in common: halves of one have none."""
    return any(bool(torch.isin(_places(a), _places(b)).any()) for a, b in combinations(tensors, 2))


def _places(tensor: Tensor) -> Tensor:
    """Where the elements of a tensor lie, of a large one those of its first row."""
    if tensor.numel() > _MANY:
        tensor = tensor[:1]
    places = torch.tensor(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(size) * stride
    return places.flatten()
