"""Modalities that lie inside a single batch argument: a dict, a list, a dataclass, a graph."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from agm._inputs.structures import entries, parse_path, read, replaced

__all__ = ["BatchArgument"]


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
        self._paths = {name: parse_path(inputs[name]) for name in modalities}
        self.paths = tuple(self._paths.values())
        parameters = list(inspect.signature(network.forward).parameters)
        if not parameters:
            raise ValueError(f"Expected {type(network).__name__}.forward to take a batch, but it takes no argument.")
        self.name = parameters[0]

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        """Modality -> its input, the arguments by position, the batch being the first, and those by keyword.

        Raises:
            ValueError: there is no batch, or a modality is not in it.
        """
        batch = args[0] if args else kwargs.pop(self.name, None)
        if batch is None:
            raise ValueError(f"Expected a batch as the first argument, or as `{self.name}`, but got none.")
        found = {}
        for name, path in self._paths.items():
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
        return found, [batch, *args[1:]], kwargs

    def joined(self, inputs: Mapping[str, Any], batch: Any) -> Any:
        """A batch with these inputs in it."""
        for name, value in inputs.items():
            if read(batch, self._paths[name]) is not value:
                batch = replaced(batch, self._paths[name], value)
        return batch
