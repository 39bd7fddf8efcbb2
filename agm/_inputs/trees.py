"""Pytrees, most of which are a single tensor: those are not taken apart."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["flattened", "leaves_of", "mapped", "unflattened"]

_CALL = pytree.tree_structure(((0,), {}))  # of a call with one argument by position


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`pytree.tree_map`."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if type(tree) is tuple and not others and all(isinstance(value, Tensor) for value in tree):
        return tuple(map(function, tree))
    return pytree.tree_map(function, tree, *others)


def leaves_of(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """`pytree.tree_leaves`."""
    if isinstance(tree, Tensor):
        return [tree]
    kind = type(tree)
    if kind is dict or kind is tuple or kind is list:  # at once, where they hold tensors alone
        values = list(tree.values() if kind is dict else tree)
        if values and all(isinstance(value, Tensor) for value in values) and (is_leaf is None or not is_leaf(tree)):
            return values
    return pytree.tree_leaves(tree, is_leaf=is_leaf)


def flattened(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], pytree.TreeSpec]:
    """`pytree.tree_flatten`, of what a function is called with or returns."""
    if type(tree) is tuple and len(tree) == 2 and type(tree[0]) is tuple and len(tree[0]) == 1 and tree[1] == {}:
        (only,) = tree[0]
        if isinstance(only, Tensor):
            return [only], _CALL
    return pytree.tree_flatten(tree, is_leaf=is_leaf)


def unflattened(leaves: list[Any], structure: pytree.TreeSpec) -> Any:
    """`pytree.tree_unflatten`."""
    return ((leaves[0],), {}) if structure is _CALL else pytree.tree_unflatten(leaves, structure)
