"""What runs in a pass: its functions, with what is given to them, told so that two passes can be compared."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agm._module_state.traces import is_own
from agm._one_pass.heads import OF_HEADS
from agm._one_pass.layouts import Mode, RowCount, Unsplit
from agm._one_pass.rules import tensors_in

__all__ = ["Origins", "told_call"]

_REGISTERED = ("_parameters", "_buffers")


class Origins:
    """Where the tensors of a pass come from: those of the modules, those given, those that its functions have made.

    Others were made behind the back of torch's functions (by compiled code, as a parameter, by `torch.vmap`), and may
    have rows of which nobody knows.

    Args:
        modules: of the encoder.
        given: leaves of what it is given.
    """

    def __init__(self, modules: Sequence[nn.Module], given: Iterable[Any]) -> None:
        self._modules = modules
        self._given = {id(leaf): ("given", place) for place, leaf in enumerate(given) if isinstance(leaf, Tensor)}
        self._own: dict[int, object] = {}
        self._holds = False  # whether what attributes hold is among them
        self._made: dict[int, tuple[weakref.ref[Tensor], object]] = {}

    def add(self, result: Any, label: object) -> bool:
        """The tensors of a result, which come from there; whether there are any."""
        if isinstance(result, Tensor):
            self._made[id(result)] = weakref.ref(result), (label, 0)
            return True
        found = False
        if isinstance(result, (list, tuple)):
            for place, tensor in enumerate(tensors_in(result)):
                self._made[id(tensor)] = weakref.ref(tensor), (label, place)
                found = True
        return found

    def of(self, tensor: Tensor) -> object:
        """Where a tensor comes from.

        Raises:
            Unsplit: nobody knows.
        """
        made = self._made.get(id(tensor))
        if made is not None and made[0]() is tensor:
            return made[1]
        found = self._given.get(id(tensor)) or self._of_modules(tensor)
        if found is None:
            raise Unsplit("it calculates with a tensor of which nobody knows where it comes from")
        return found

    def _of_modules(self, tensor: Tensor) -> object:
        if not self._own:
            for place, module in enumerate(self._modules):
                for kind in _REGISTERED:
                    for name, value in vars(module)[kind].items():
                        self._own.setdefault(id(value), (place, name))
        if id(tensor) not in self._own and not self._holds:
            self._holds = True
            for place, module in enumerate(self._modules):
                if is_own(module):
                    for number, value in enumerate(_held(vars(module).values())):
                        self._own.setdefault(id(value), (place, number))
        return self._own.get(id(tensor))


def _held(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _held(value)
        elif type(value) is dict:
            yield from _held(value.values())


class _Same:
    """An object that is equal to itself alone."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class _Size:
    """A size that is the same number, or the same number for each row."""

    def __init__(self, value: int, rows: int) -> None:
        self.value, self.rows = value, rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Size):
            return False
        return self.value == other.value or self.value * other.rows == other.value * self.rows

    __hash__ = None  # type: ignore[assignment]


_VALUES = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, slice)


def _told(value: Any, origins: Origins, rows: int = 0) -> Any:
    if isinstance(value, Tensor):
        return origins.of(value)
    if isinstance(value, (list, tuple)):
        return tuple(_told(one, origins, rows) for one in value)
    if rows and type(value) is int:
        return _Size(value, rows)
    if type(value) is slice:
        return "slice", _told((value.start, value.stop, value.step), origins)
    if type(value) in (RowCount, Mode):
        return type(value)
    return value if value is None or isinstance(value, _VALUES) else _Same(value)


# Places of what eval mode gives otherwise, to which the rules of these functions see.
_OF_MODE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("batch_norm", "instance_norm", "lstm", "gru", "rnn_tanh", "rnn_relu"), (5, 6)),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "dropout_"), (1, 2)),
    **dict.fromkeys(("feature_alpha_dropout", "feature_dropout", "alpha_dropout_"), (1, 2)),
    "scaled_dot_product_attention": (4,),
    "multi_head_attention_forward": (OF_HEADS.index("dropout_p"), OF_HEADS.index("training")),
    "rrelu": (3,),
}
_NAMES_OF_MODE = frozenset(("training", "train", "p", "dropout_p", "momentum", "use_input_stats"))
_LAYING_OUT = frozenset(("view", "reshape", "unflatten"))


def told_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], origins: Origins, rows: int) -> Any:
    """A call of a function: equal to another one if that does the same with tensors that come from the same.

    Args:
        name: of the function.
        args: by position.
        kwargs: by name.
        origins: of the tensors.
        rows: of the pass, if the first argument has them, else 0.
    """
    left_out = _OF_MODE.get(name)
    if left_out is not None:
        args = [None if place in left_out else value for place, value in enumerate(args)]
        kwargs = {key: None if key in _NAMES_OF_MODE else value for key, value in kwargs.items()}
    return name, tuple(kwargs), _told((*args, *kwargs.values()), origins, rows if name in _LAYING_OUT else 0)
