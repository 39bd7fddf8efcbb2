"""Whether a tensor is computed from the logits: autograd's graph, read backwards."""

import re
from typing import Any, Literal

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

__all__ = ["LogitsInGraph"]

_Edge = tuple[Any, int]
"""A node of autograd's graph, and which of its outputs."""

_DEEP, _MANY = 8, 4096

# One number in, one number out: a loss of what goes in is one of the logits, too.
_ONE_BY_ONE = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Clone"),
        *("ToCopy", "Div", "Mul", "Neg", "Add", "Sub", "Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid", "Tanh"),
    )
)
_SHAPES = frozenset(("View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze", "Transpose", "T", "ToCopy"))
_LINEAR = frozenset(("Addmm", "Mm", "Linear", "Matmul"))
_BY_INDEX = ("BackwardHookFunctionBackward", "_DDPSinkBackward")  # hand on each of their inputs


class LogitsInGraph:
    """Where the logits are in the graph of a joint pass, and what else is the same as they.

    Args:
        logits: with a graph.
        head: as in `own_losses`; the numbers in the place of the logits are then what it is given.
    """

    def __init__(self, logits: Tensor, head: nn.Linear | None = None) -> None:
        edge: _Edge = (logits.grad_fn, logits.output_nr)
        self._head = head
        # What is made of the input of the head is not made of the logits.
        self._places = _places(edge) if head is None else [edge] * (edge[0] is not None)
        self._hidden = None if head is None or edge[0] is None else _source(*_before(edge)[:1])
        numbers = [_number(node) for node, _ in self._places]
        again = [self._hidden] if self._hidden else [] if not numbers else _before(self._places[-1])
        # What is computed from the same features by the same layers once more is older than the logits, or younger.
        made = [_number(node) for node, _ in map(_source, again) if not _is_leaf(node)]
        self._oldest = min([*numbers, *(number + 1 for number in made)], default=0)

    def within(self, tensor: Tensor) -> frozenset[str] | Literal["unknown"] | None:
        """Names of the nodes that lead from a tensor to the logits, and some beside; None: it is not made of them."""
        edge: _Edge = (tensor.grad_fn, tensor.output_nr)
        if not self._places or _number(edge[0]) < self._oldest:
            return None
        known = set(self._places)
        together = {node for node, _ in self._places if _is_function(node)}
        seen, left, unknown, found = {edge}, [edge], False, False
        while left and len(seen) < _MANY:
            edge = left.pop()
            if edge in known or self._is_again(edge[0]):
                found = True
                continue
            unknown |= edge[0] in together
            for one in _before(edge):
                if one not in seen and _number(one[0]) >= self._oldest:  # what is older is not made of them
                    seen.add(one)
                    left.append(one)
        if found:
            return frozenset(node.name() for node, _ in seen)
        return "unknown" if unknown or left else None

    def _is_again(self, node: Any) -> bool:
        """Whether a node computes the logits once more."""
        if self._head is None:
            last = self._places[-1][0]
            return node is not last and _is_same(node, last)
        if _kind(node) not in _LINEAR:
            return False
        inputs = _before((node, 0))
        has_weight = any(_parameter(one) is self._head.weight for one, _ in inputs)
        return has_weight and any(_source(edge) == self._hidden for edge in inputs)


def _places(edge: _Edge) -> list[_Edge]:
    """Where the logits are in the graph, and the numbers that became them one by one."""
    places: list[_Edge] = []
    while edge[0] is not None:
        places.append(edge)
        before = [one for one in _before(edge) if not _is_leaf(one[0])]
        if len(before) != 1 or (_kind(edge[0]) not in _ONE_BY_ONE and edge[0].name() not in _BY_INDEX):
            break
        (edge,) = before
    return places


def _source(edge: _Edge) -> _Edge:
    """What a tensor was before it was only given another shape."""
    while _kind(edge[0]) in _SHAPES and len(before := _before(edge)) == 1:
        (edge,) = before
    return edge


def _is_same(node: Any, other: Any, depth: int = _DEEP) -> bool:
    """Whether two nodes compute the same: by the same parameters, of what both have in their graphs."""
    if node is other:
        return True
    inputs, its = node.next_functions, other.next_functions
    if not depth or node.name() != other.name() or _is_leaf(node) or len(inputs) != len(its):
        return False
    has_met = False  # of tensors without a gradient nobody knows which they were
    for (one, place), (another, its_place) in zip(inputs, its, strict=True):
        if one is None or another is None:
            if one is not another:
                return False
        elif (parameter := _parameter(one)) is not None:
            if parameter is not _parameter(another):
                return False
        elif place != its_place or not _is_same(one, another, depth - 1):
            return False
        else:
            has_met = True
    return has_met


def _parameter(node: Any) -> Tensor | None:
    """Which one a node hands on, in whatever shape; None: it is of something else."""
    node, _ = _source((node, 0))
    return node.variable if _is_leaf(node) else None


def _before(edge: _Edge) -> list[_Edge]:
    node, index = edge
    edges = node.next_functions
    if node.name() in _BY_INDEX and index < len(edges):
        edges = edges[index : index + 1]
    return [one for one in edges if one[0] is not None]


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", node.name())


def _is_leaf(node: Any) -> bool:
    return "AccumulateGrad" in node.name()


def _number(node: Any) -> int:
    """When it was made."""
    number = getattr(node, "_sequence_nr", None)
    return 0 if number is None else int(number())


def _is_function(node: Any) -> bool:
    """Whether it is of a function written in Python, which may compute several things from one another."""
    return node.name() not in _BY_INDEX and isinstance(node, BackwardCFunction)
