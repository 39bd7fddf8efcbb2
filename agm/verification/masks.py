"""Whether forward makes masks or lengths of a modality's values, which an absent input changes."""

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["MaskFinder", "advice"]

_COMPARES = frozenset(
    (
        *("eq", "ne", "gt", "ge", "lt", "le", "__eq__", "__ne__", "__gt__", "__ge__", "__lt__", "__le__", "isnan"),
        *("any", "all", "nonzero", "count_nonzero", "sign", "bool", "argwhere", "equal", "allclose", "isclose"),
    )
)
_KEEPS = frozenset(
    (
        *("abs", "sum", "norm", "amax", "amin", "max", "min", "mean", "square", "pow", "view", "reshape", "unsqueeze"),
        *("squeeze", "transpose", "permute", "contiguous", "detach", "clone", "float", "double", "to", "__getitem__"),
        *("flatten", "select", "narrow", "__pow__", "vector_norm", "linalg_norm", "__abs__", "long", "int"),
    )
)


class MaskFinder(TorchFunctionMode):
    """Notes of which modalities the values are compared, as they are or summed up, in what runs inside.

    Args:
        inputs: modality -> its input.

    Attributes:
        found: those modalities.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._known: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        for name, value in inputs.items():
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    self._known[id(leaf)] = (weakref.ref(leaf), name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        kind = getattr(func, "__name__", "")
        if isinstance(first, Tensor) and (name := self._of(first)) is not None:
            if kind in _COMPARES:
                self.found.add(name)
            elif kind in _KEEPS:
                for leaf in pytree.tree_leaves(result):
                    if isinstance(leaf, Tensor):
                        self._known[id(leaf)] = (weakref.ref(leaf), name)
        return result

    def _of(self, tensor: Tensor) -> str | None:
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None


def advice(name: str) -> str:
    """What to do about it, in a sentence."""
    return (
        f"Forward compares the values of `{name}`, as for a padding mask or lengths: an absent input, all zeros, has "
        f"another one. Where it should keep its own, give the mask as an argument: modalities={{{name!r}: ({name!r}, "
        "'mask')}, or say in `absent` what an absent input is."
    )
