"""How the modalities enter a network's forward: by keyword, by position, grouped, or inside a batch."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from agm._inputs.absent import are_rows
from agm._inputs.batch_argument import BatchArgument
from agm._inputs.opened import Known, closed, opened
from agm._inputs.trees import leaves_of
from agm._inputs.whole import Whole
from agm.ops._checks import check_modalities

__all__ = ["Arguments", "Binding", "Modalities", "names_of"]

Modalities = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Names of modalities; or modality -> the parameter of forward that carries it, or those that do together."""

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ANY_PLACE, _ANY_NAME = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments(NamedTuple):
    """The arguments of a call to the network, taken apart."""

    inputs: dict[str, Any]  # modality -> its input, in the order of the modalities; grouped: a dict by parameter
    others: list[Any]  # further positional arguments
    rest: dict[str, Any]  # further keyword arguments
    placed: tuple[str, ...] = ()  # the modalities that are passed on by position


def names_of(modalities: Modalities) -> tuple[str, ...]:
    """The names, in order.

    Raises:
        TypeError: they have no order.
        ValueError: they are fewer than two, or not distinct.
    """
    return check_modalities(modalities)


def _parameters(modalities: Modalities) -> dict[str, tuple[str, ...] | str]:
    """Modality -> its parameter, or those that carry it together.

    Raises:
        TypeError: something else than names.
    """
    if not isinstance(modalities, Mapping):
        return {name: name for name in modalities}
    found: dict[str, tuple[str, ...] | str] = {}
    for name, carriers in modalities.items():
        group = (carriers,) if isinstance(carriers, str) else tuple(carriers)
        if not group or not all(isinstance(one, str) for one in group):
            raise TypeError(
                f"Expected `modalities[{name!r}]` to name the arguments of forward that carry it, such as "
                f'("input_ids", "attention_mask"), but got {carriers!r}.'
            )
        found[name] = carriers if isinstance(carriers, str) else group
    taken = [one for group in found.values() for one in _group(group)]
    if twice := sorted({one for one in taken if taken.count(one) > 1}):
        raise ValueError(f"Expected each argument of forward to carry one modality, but {twice} carry several.")
    return found


class Binding:
    """Takes apart the arguments of a call into modalities and the rest, and calls the network with both.

    A forward whose parameters bear the modalities' names gets them by keyword. One that bears none of the names gets
    them by position, in the order of `modalities`; one that takes anything (*args, **kwargs) gets each as it came.

    Args:
        network: whose forward is called.
        modalities: their names, or what carries them.
        inputs: modality -> its path in the one batch that forward takes; None: each is an argument.
        by_callable: modalities that a callable makes absent, and may therefore come as something whose rows are not
            those of the samples.

    Attributes:
        wholes: those of them that have come so.

    Raises:
        ValueError: forward takes some of the modalities but not all, or too few arguments.
    """

    def __init__(
        self,
        network: nn.Module,
        modalities: Modalities,
        inputs: Mapping[str, Any] | None = None,
        by_callable: Sequence[str] = (),
    ) -> None:
        self.network = network
        self.by_callable = tuple(by_callable)
        self.wholes: set[str] = set()
        self._with_rows: set[str] = set()
        self.modalities = tuple(modalities) if len(modalities) == 1 else names_of(modalities)
        self.carriers = _parameters(modalities)
        self.batch = None if inputs is None else BatchArgument(network, self.modalities, inputs)
        # The parameters that carry modalities, one after another; by position they can only be one a modality.
        self._carrying = [one for group in self.carriers.values() for one in _group(group)]
        self._is_plain = all(group == name for name, group in self.carriers.items())
        signature = inspect.signature(network.forward)
        parameters = signature.parameters.values()
        kinds = {p.kind for p in parameters}
        places = [p for p in parameters if p.kind in _PLACED]
        missing = [name for name in self._carrying if name not in {p.name for p in parameters if p.kind in _NAMED}]
        self._names = [p.name for p in places]
        self._by_name = not missing
        self._any_place = _ANY_PLACE in kinds
        required = [p for p in places if p.default is inspect.Parameter.empty]
        none_named = len(missing) == len(self._carrying)
        self._any_name = _ANY_NAME in kinds and not (none_named and len(required) >= len(self._carrying))
        self._known: Known = {}
        if self.batch is not None:
            return
        room = self._any_place or len(places) >= len(self._carrying)
        if missing and not self._any_name and not (room and none_named and self._is_plain):
            one = len(required) == 1 and len(places) == 1
            advice = (
                ' If that is a whole batch, name where the modalities are in it: inputs={"audio": "audio", ...}.'
                if one and none_named
                else ""
            )
            raise ValueError(
                f"Expected the network's forward to take the modalities {tuple(self._carrying)}, but it does not take "
                f"{missing}: its signature is {type(network).__name__}.forward{signature}.{advice}"
            )

    def split(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Inputs by modality, in their order, and the other arguments of the call.

        Raises:
            ValueError: a modality is missing (or None).
            TypeError: an argument was given twice, or too many by position.
        """
        if self.batch is not None:
            return self._opened(Arguments(*self.batch.split(args, dict(kwargs))))
        given = dict(kwargs)
        names = self._names if self._by_name else [name for name in self._carrying if name not in given]
        if self._by_name and len(args) > len(names):
            raise TypeError(
                f"Expected at most {len(names)} arguments by position in training, but got {len(args)}. "
                "Pass the others by keyword."
            )
        for name, value in zip(names, args, strict=False):
            if name in given:
                raise TypeError(f"Argument `{name}` was given twice, by position and by keyword.")
            given[name] = value
        inputs = {}
        for name, group in self.carriers.items():
            if isinstance(group, str):
                inputs[name] = given.pop(group, None)
            else:  # a mask or a length may be left out
                found = {one: given.pop(one) for one in group if given.get(one) is not None}
                inputs[name] = found or None
        missing = [name for name, value in inputs.items() if value is None]
        if missing:
            raise ValueError(
                f"Expected an input for every modality of {self.modalities}, but got none for {missing}. Give samples "
                "that lack one any values there (zeros), and say so with `present`."
            )
        placed: tuple[str, ...] = ()
        if not self._by_name and not self._any_name:
            placed = self.modalities
        elif not self._by_name and self._any_place:
            placed = tuple(names[: len(args)])
        return self._opened(Arguments(inputs, list(args[len(names) :]), given, placed))

    def _opened(self, arguments: Arguments) -> Arguments:
        """The arguments with what belongs to samples as leaves."""
        if self.by_callable and (wholes := self._found_whole(arguments.inputs)):
            return arguments._replace(inputs=wholes)  # nothing is repeated: each subset has a pass of its own
        if self.batch is not None:
            return opened(arguments, _count(arguments.inputs), self._known, self.batch.name, self.batch.paths)
        values = (*arguments.inputs.values(), *arguments.others, *arguments.rest.values())
        if all([isinstance(value, _PLAIN) for value in values]):  # as nearly always
            return arguments
        return opened(arguments, _count(arguments.inputs), self._known)

    def _found_whole(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """The inputs with `Whole` around those that a callable makes absent and that have no row a sample."""
        plain = {name: x for name, x in inputs.items() if name not in self.wholes and are_rows(x)}
        count = _count({name: x for name, x in plain.items() if name not in self.by_callable} or plain)
        for name in self.by_callable if count >= 0 else ():
            if are_rows(inputs[name], count):
                self._with_rows.add(name)
            elif name in self._with_rows - self.wholes:
                raise ValueError(
                    f"Expected the input of `{name}` to have a row for each of the {count} samples, as it had in an "
                    "earlier batch, but it has not. If its rows are those of several samples one behind another, begin "
                    "with a batch that shows it, in which they are not as many as the samples."
                )
            else:
                self.wholes.add(name)
        if count < 0 or not self.wholes:
            return None
        return {name: Whole(x) if name in self.wholes else x for name, x in inputs.items()}

    def is_verbatim(self, args: tuple[Any, ...]) -> bool:
        """Whether a call with these positional arguments reaches forward as it is."""
        if self.batch is not None:
            return True
        return self._by_name or (self._any_name and (self._any_place or not args))

    def call(self, arguments: Arguments) -> Any:
        """The network's output."""
        args, kwargs = self.as_given(arguments)
        return self.network(*args, **kwargs)

    def as_given(self, arguments: Arguments) -> tuple[list[Any], dict[str, Any]]:
        """The arguments by position and by keyword, as a call has them."""
        inputs = {name: closed(value) for name, value in arguments.inputs.items()}
        others = [closed(value) for value in arguments.others]
        rest = {name: closed(value) for name, value in arguments.rest.items()}
        if self.batch is not None:
            return [self.batch.joined(inputs, others[0]), *others[1:]], rest
        placed = arguments.placed
        named: dict[str, Any] = {}
        for name, value in inputs.items():
            if name not in placed:
                group = self.carriers[name]
                named.update({group: value} if isinstance(group, str) else value)
        return [*(inputs[name] for name in placed), *others], {**named, **rest}


_PLAIN = (Tensor, bool, int, float, str, type(None))


def _count(inputs: Mapping[str, Any]) -> int:
    """The number of samples, of the first tensor that has rows; -1 where there is none."""
    for value in inputs.values():
        for leaf in leaves_of(value):
            if isinstance(leaf, Tensor) and not leaf.is_nested and leaf.dim():
                return leaf.shape[0]
    return -1


def _group(carriers: tuple[str, ...] | str) -> tuple[str, ...]:
    return (carriers,) if isinstance(carriers, str) else carriers
