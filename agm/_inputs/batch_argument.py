"""Modalities that lie inside a single batch argument: a dict, a list, a dataclass, a graph."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.structures import Path, entries, parse_path, read, replaced

__all__ = ["BatchArgument", "Rest"]


@dataclass
class Rest:
    """The leaves of a batch that may have a row a sample, beside the modalities, and the batch they are from."""

    leaves: dict[Path, Any]
    batch: Any


pytree.register_pytree_node(
    Rest,
    lambda rest: (list(rest.leaves.values()), (tuple(rest.leaves), rest.batch)),
    lambda values, context: Rest(dict(zip(context[0], values, strict=True)), context[1]),
)


class BatchArgument:
    """Takes the modalities out of a batch, and puts others in their place.

    Args:
        network: whose forward takes the batch as its first argument.
        modalities: their names.
        inputs: modality -> its path in the batch: a key, an index, an attribute, or several: "views.0", ("views", 0).

    Raises:
        ValueError: forward takes no argument, or `inputs` names other modalities.
    """

    def __init__(self, network: nn.Module, modalities: tuple[str, ...], inputs: Mapping[str, Any]) -> None:
        if set(inputs) != set(modalities):
            raise ValueError(
                f"Expected argument `inputs` to say where each of {modalities} is in the batch, but got "
                f"{tuple(inputs)}."
            )
        self.paths = {name: parse_path(inputs[name]) for name in modalities}
        parameters = list(inspect.signature(network.forward).parameters)
        if not parameters:
            raise ValueError(f"Expected {type(network).__name__}.forward to take a batch, but it takes no argument.")
        self.name = parameters[0]

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Rest, list[Any], Any]:
        """Modality -> its input, what else the batch holds, and the other arguments by position and by keyword.

        Raises:
            ValueError: there is no batch, or a modality is not in it.
        """
        batch = args[0] if args else kwargs.pop(self.name, None)
        if batch is None:
            raise ValueError(f"Expected a batch as the first argument, or as `{self.name}`, but got none.")
        found = {}
        for name, path in self.paths.items():
            try:
                value = read(batch, path)
            except LookupError as error:
                keys = [key for key, _ in entries(batch) or ()]
                raise ValueError(
                    f"Expected `{name}` at {'.'.join(map(str, path))} in argument `{self.name}`, but it is not there; "
                    f"the batch holds {keys}."
                ) from error
            if value is None:
                raise ValueError(f"Expected an input for every modality, but {name!r} is None in `{self.name}`.")
            found[name] = value
        leaves = {path: value for path, value in _leaves(batch) if not _is_inside(path, self.paths.values())}
        return found, Rest(leaves, batch), list(args[1:]), kwargs

    def joined(self, inputs: Mapping[str, Any], rest: Rest, others: list[Any]) -> list[Any]:
        """The positional arguments of forward, with these inputs in the batch."""
        batch = rest.batch
        for path, value in [*rest.leaves.items(), *((self.paths[name], value) for name, value in inputs.items())]:
            if read(batch, path) is not value:
                batch = replaced(batch, path, value)
        return [batch, *others]


def _leaves(value: Any, path: Path = (), depth: int = 4) -> list[tuple[Path, Any]]:
    """Tensors, arrays and lists of a value a sample, with their paths."""
    if isinstance(value, Tensor) or not depth:
        return [(path, value)]
    found = entries(value)
    if found is None:
        return [(path, value)] if path and type(value).__module__ == "numpy" else []
    inner = list(found)
    if isinstance(value, (list, tuple)) and not any(isinstance(one, Tensor) or entries(one) for _, one in inner):
        return [(path, value)] if path else []
    return [leaf for key, one in inner for leaf in _leaves(one, (*path, key), depth - 1)]


def _is_inside(path: Path, roots: Any) -> bool:
    return any(path[: len(root)] == root for root in roots)
