"""Which modalities a tensor of a masked pass was computed from."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from agm._lazy_rows.tensor import Deferred

__all__ = ["Origins"]

_NOTHING: frozenset[int] = frozenset()


class Origins(TorchFunctionMode):
    """Follows the modalities' inputs through every function that runs inside, gradients or none.

    What comes of a function has the origins of all that went into it, whether or not a value of it shows: a gate that
    is zero today counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[weakref.ref[Tensor], frozenset[int]]] = {}

    def of(self, value: Any) -> frozenset[int]:
        """The bits of the modalities that a tensor was computed from."""
        if isinstance(value, Deferred):
            return value.bits
        found = self._known.get(id(value))
        return found[1] if found is not None and found[0]() is value else _NOTHING

    def note(self, value: Any, bits: frozenset[int]) -> None:
        """That the tensors of a pytree come from some modalities, beside what is known of them."""
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Deferred):
                leaf.bits |= bits
            elif isinstance(leaf, Tensor):
                self._known[id(leaf)] = (weakref.ref(leaf), self.of(leaf) | bits)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        bits = self._of_all(args, kwargs)
        result = func(*args, **kwargs)
        if bits:
            if isinstance(result, (Tensor, tuple, list)):
                self.note(result, bits)
            name = getattr(func, "__name__", "")
            if (name == "__setitem__" or name.endswith("_")) and args and isinstance(args[0], Tensor):
                self.note(args[0], bits)
        return result

    def _of_all(self, args: Iterable[Any], kwargs: dict[str, Any]) -> frozenset[int]:
        bits = _NOTHING
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                bits |= self.of(value)
            elif isinstance(value, (tuple, list, dict)):
                for leaf in pytree.tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        bits |= self.of(leaf)
        return bits
