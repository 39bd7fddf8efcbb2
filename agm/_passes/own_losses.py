"""Losses that forward itself computes of the logits: their gradient would pass by the modulation."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from agm._inputs.structures import Path, entries

__all__ = ["kept_losses", "kept_losses_note", "own_losses"]

_Edge = tuple[Any, int]
"""A node of autograd's graph, and which of its outputs."""

_DEEP, _MANY = 6, 4096

# One number in, one number out: a loss of what goes in is one of the logits, too.
_ONE_BY_ONE = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Clone"),
        *("ToCopy", "Div", "Mul", "Neg", "Add", "Sub", "Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid", "Tanh"),
    )
)
_BY_INDEX = ("BackwardHookFunctionBackward", "_DDPSinkBackward")  # hand on each of their inputs


def own_losses(output: Any, logits: Tensor) -> dict[str, Literal["logits", "unknown"]]:
    """Scalars with a gradient in the output that are computed from its logits, by where they are.

    Auxiliary losses, of features or of routers, are not among them: the logits are not in their graph. Of what a
    compiled graph has computed together with the logits nothing is known.
    """
    return _of_logits(_scalars(output, logits), logits)


def kept_losses(network: nn.Module, logits: Tensor) -> tuple[str, ...]:
    """Attributes of the network's modules that keep such a scalar."""

    def held() -> Iterator[tuple[Path, Tensor]]:
        for path, module in network.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, (Tensor, list, tuple, dict)) and not name.startswith("_"):
                    yield from _scalars(value, logits, (path, name) if path else (name,))

    return tuple(_of_logits(held(), logits))


def kept_losses_note(names: tuple[str, ...]) -> str:
    """What to do about them, in sentences."""
    return (
        f"Forward keeps a loss of its own logits in {', '.join(f'`{name}`' for name in names)}: its gradient passes by "
        "the modulation. Compute the loss from what the model returns, and keep the other only to be looked at "
        "(loss.detach())."
    )


def _scalars(value: Any, logits: Tensor, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    if value is logits:
        return
    if isinstance(value, Tensor):
        is_one = value.dim() == 0 or (value.shape == (1,) and len(logits) > 1)
        if is_one and value.requires_grad and value.grad_fn is not None:
            yield path, value
    elif len(path) < _DEEP:
        for key, inner in entries(value) or ():
            yield from _scalars(inner, logits, (*path, key))


def _of_logits(found: Iterator[tuple[Path, Tensor]], logits: Tensor) -> dict[str, Literal["logits", "unknown"]]:
    places: list[_Edge] = []
    verdicts: dict[str, Literal["logits", "unknown"]] = {}
    for path, scalar in found:
        places = places or _places(logits)
        if places and (verdict := _verdict((scalar.grad_fn, scalar.output_nr), places)):
            verdicts[".".join(map(str, path))] = verdict
    return verdicts


def _places(logits: Tensor) -> list[_Edge]:
    """Where the logits are in the graph, and the numbers that became them one by one."""
    places: list[_Edge] = []
    edge: _Edge = (logits.grad_fn, logits.output_nr)
    while edge[0] is not None:
        places.append(edge)
        kind = re.sub(r"Backward\d*$", "", edge[0].name())
        before = _before(edge)
        before = [one for one in before if "AccumulateGrad" not in one[0].name()]
        if len(before) != 1 or (kind not in _ONE_BY_ONE and edge[0].name() not in _BY_INDEX):
            break
        (edge,) = before
    return places


def _before(edge: _Edge) -> list[_Edge]:
    node, index = edge
    edges = node.next_functions
    if node.name() in _BY_INDEX and index < len(edges):
        edges = edges[index : index + 1]
    return [one for one in edges if one[0] is not None]


def _verdict(edge: _Edge, places: list[_Edge]) -> Literal["logits", "unknown"] | None:
    """What is to be said of a scalar; None: it is not of the logits."""
    oldest = min(_number(node) for node, _ in places)
    known = set(places)
    together = {node for node, _ in places if _is_function(node)}
    seen, left, unknown = {edge}, [edge], False
    while left and len(seen) < _MANY:
        edge = left.pop()
        if edge in known:
            return "logits"
        unknown |= edge[0] in together
        for one in _before(edge):
            if one not in seen and _number(one[0]) >= oldest:  # what is older than the logits is not made of them
                seen.add(one)
                left.append(one)
    return "unknown" if unknown or left else None


def _number(node: Any) -> int:
    """When it was made."""
    number = getattr(node, "_sequence_nr", None)
    return 0 if number is None else int(number())


def _is_function(node: Any) -> bool:
    """Whether it is of a function written in Python, which may compute several things from one another."""
    return node.name() not in _BY_INDEX and isinstance(node, BackwardCFunction)
