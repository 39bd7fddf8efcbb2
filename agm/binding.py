"""How the modalities enter a network's forward: by keyword, or by position."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Arguments", "Binding"]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments(NamedTuple):
    """The arguments of a call to the network, taken apart."""

    inputs: dict[str, Any]  # modality -> its input, in the order of the modalities
    others: list[Any]  # further positional arguments
    rest: dict[str, Any]  # further keyword arguments


class Binding:
    """Takes apart the arguments of a call into modalities and the rest, and calls the network with both.

    A forward whose parameters bear the modalities' names (or that takes **kwargs) gets them by keyword. One that
    bears none of the names gets them by position, in the order of `modalities`.

    Raises:
        ValueError: forward takes some of the modalities but not all, or too few arguments.
    """

    def __init__(self, network: nn.Module, modalities: tuple[str, ...]) -> None:
        self.network = network
        self.modalities = modalities
        signature = inspect.signature(network.forward)
        kinds = [p.kind for p in signature.parameters.values()]
        self._names = [p.name for p in signature.parameters.values() if p.kind in _PLACED]
        named = {p.name for p in signature.parameters.values() if p.kind in _NAMED}
        missing = [name for name in modalities if name not in named]
        self.by_keyword = not missing or inspect.Parameter.VAR_KEYWORD in kinds
        if self.by_keyword:
            return
        places = len(modalities) if inspect.Parameter.VAR_POSITIONAL in kinds else len(self._names)
        if len(missing) < len(modalities) or places < len(modalities):
            raise ValueError(
                f"Expected the network's forward to take the modalities {modalities}, but it does not take {missing}: "
                f"its signature is {type(network).__name__}.forward{signature}."
            )

    def split(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Inputs by modality, in their order, and the other arguments of the call.

        Raises:
            ValueError: a modality is missing (or None).
            TypeError: an argument was given twice.
        """
        given = dict(kwargs)
        others: list[Any] = []
        if self.by_keyword:
            # Without names of its own (forward(**kwargs)) a network takes its modalities in their order.
            names = self._names or list(self.modalities)
            if len(args) > len(names):
                raise TypeError(f"Expected at most {len(names)} positional arguments, but got {len(args)}.")
            for name, value in zip(names, args, strict=False):
                if name in given:
                    raise TypeError(f"Argument `{name}` was given twice, by position and by keyword.")
                given[name] = value
        else:
            free = [name for name in self.modalities if name not in given]
            given.update(zip(free, args, strict=False))
            others = list(args[len(free) :])
        missing = [name for name in self.modalities if given.get(name) is None]
        if missing:
            raise ValueError(f"Expected an input for every modality of {self.modalities}, but got none for {missing}.")
        inputs = {name: given.pop(name) for name in self.modalities}
        return Arguments(inputs, others, given)

    def call(self, arguments: Arguments) -> Any:
        inputs, others, rest = arguments
        if self.by_keyword:
            return self.network(**inputs, **rest)
        return self.network(*(inputs[name] for name in self.modalities), *others, **rest)
