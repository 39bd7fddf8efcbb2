"""How the modalities enter a network's forward: by keyword, or by position."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Arguments", "Binding"]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ANY_PLACE, _ANY_NAME = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments(NamedTuple):
    """The arguments of a call to the network, taken apart."""

    inputs: dict[str, Any]  # modality -> its input, in the order of the modalities
    others: list[Any]  # further positional arguments
    rest: dict[str, Any]  # further keyword arguments
    placed: tuple[str, ...] = ()  # the modalities that are passed on by position


class Binding:
    """Takes apart the arguments of a call into modalities and the rest, and calls the network with both.

    A forward whose parameters bear the modalities' names gets them by keyword. One that bears none of the names gets
    them by position, in the order of `modalities`; one that takes anything (*args, **kwargs) gets each as it came.

    Raises:
        ValueError: forward takes some of the modalities but not all, or too few arguments.
    """

    def __init__(self, network: nn.Module, modalities: tuple[str, ...]) -> None:
        self.network = network
        self.modalities = modalities
        signature = inspect.signature(network.forward)
        parameters = signature.parameters.values()
        kinds = {p.kind for p in parameters}
        places = [p for p in parameters if p.kind in _PLACED]
        missing = [name for name in modalities if name not in {p.name for p in parameters if p.kind in _NAMED}]
        self._names = [p.name for p in places]
        self._by_name = not missing
        self._any_place = _ANY_PLACE in kinds
        required = [p for p in places if p.default is inspect.Parameter.empty]
        self._any_name = _ANY_NAME in kinds and not (missing == list(modalities) and len(required) >= len(modalities))
        room = self._any_place or len(places) >= len(modalities)
        if missing and not self._any_name and not (room and len(missing) == len(modalities)):
            raise ValueError(
                f"Expected the network's forward to take the modalities {modalities}, but it does not take {missing}: "
                f"its signature is {type(network).__name__}.forward{signature}."
            )

    def split(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Inputs by modality, in their order, and the other arguments of the call.

        Raises:
            ValueError: a modality is missing (or None).
            TypeError: an argument was given twice, or too many by position.
        """
        given = dict(kwargs)
        names = self._names if self._by_name else [name for name in self.modalities if name not in given]
        if self._by_name and len(args) > len(names):
            raise TypeError(
                f"Expected at most {len(names)} arguments by position in training, but got {len(args)}. "
                "Pass the others by keyword."
            )
        for name, value in zip(names, args, strict=False):
            if name in given:
                raise TypeError(f"Argument `{name}` was given twice, by position and by keyword.")
            given[name] = value
        missing = [name for name in self.modalities if given.get(name) is None]
        if missing:
            raise ValueError(f"Expected an input for every modality of {self.modalities}, but got none for {missing}.")
        inputs = {name: given.pop(name) for name in self.modalities}
        placed: tuple[str, ...] = ()
        if not self._by_name and not self._any_name:
            placed = self.modalities
        elif not self._by_name and self._any_place:
            placed = tuple(names[: len(args)])
        return Arguments(inputs, list(args[len(names) :]), given, placed)

    def is_verbatim(self, args: tuple[Any, ...]) -> bool:
        """Whether a call with these positional arguments reaches forward as it is."""
        return self._by_name or (self._any_name and (self._any_place or not args))

    def call(self, arguments: Arguments) -> Any:
        """The network's output."""
        inputs, others, rest, placed = arguments
        named = {name: value for name, value in inputs.items() if name not in placed}
        return self.network(*(inputs[name] for name in placed), *others, **named, **rest)
