"""Pytrees as a step has them: tensors, and plain tuples, lists and dicts of them, which need no registry."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["flattened", "leaves_of", "mapped", "unflattened"]

_ALONE = pytree.tree_structure(0)
_CALL = pytree.tree_structure(((0,), {}))  # of a call with one argument by position
_EMPTY = (tuple, list, dict)
_SCALARS = frozenset((bool, int, float, complex, str, bytes, type(None)))


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`pytree.tree_map`."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    kind = type(tree)
    if kind in _SCALARS:
        return function(tree, *others)
    if not others and (kind is tuple or kind is list):
        return kind([mapped(function, value) for value in tree])
    if not others and kind is dict:
        return {key: mapped(function, value) for key, value in tree.items()}
    if kind in _EMPTY and not tree and others == (tree,):
        return kind()
    return pytree.tree_map(function, tree, *others)


def leaves_of(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """`pytree.tree_leaves`."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Any] = []
    return found if _gathers(tree, is_leaf, found) else pytree.tree_leaves(tree, is_leaf=is_leaf)


def _gathers(tree: Any, is_leaf: Callable[[Any], bool] | None, found: list[Any]) -> bool:
    """Adds the leaves of a tree to `found`; False where there is something that only pytree's registry knows."""
    kind = type(tree)
    if kind in _SCALARS:
        found.append(tree)
        return True
    if kind is not tuple and kind is not dict and kind is not list:
        return False
    if is_leaf is not None and is_leaf(tree):
        found.append(tree)
        return True
    for value in tree.values() if kind is dict else tree:
        if isinstance(value, Tensor):
            found.append(value)
        elif not _gathers(value, is_leaf, found):
            return False
    return True


def flattened(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], pytree.TreeSpec]:
    """`pytree.tree_flatten`, of what a function is called with or returns."""
    if isinstance(tree, Tensor):
        return [tree], _ALONE
    if type(tree) is tuple and len(tree) == 2 and type(tree[0]) is tuple and len(tree[0]) == 1 and tree[1] == {}:
        (only,) = tree[0]
        if isinstance(only, Tensor):
            return [only], _CALL
    return pytree.tree_flatten(tree, is_leaf=is_leaf)


def unflattened(leaves: list[Any], structure: pytree.TreeSpec) -> Any:
    """`pytree.tree_unflatten`."""
    if structure is _ALONE:
        return leaves[0]
    return ((leaves[0],), {}) if structure is _CALL else pytree.tree_unflatten(leaves, structure)
