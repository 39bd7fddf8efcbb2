"""Train rows and eval rows through a module as one batch: told apart at the level of torch's functions."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from agm._module_state.capture import is_capturing
from agm._module_state.checkpoints import packing_hook, reentrant_checkpoint
from agm._module_state.draws import DRAWING
from agm._one_pass.counters import Counters
from agm._one_pass.layer_rules import LAYER_RULES
from agm._one_pass.layouts import Layout, Mode, RowCount, Unsplit
from agm._one_pass.mode_rules import MODE_RULES, TWICE
from agm._one_pass.records import Origins, told_call
from agm._one_pass.rules import Rule, meet, no_counts, pointwise, tensors_in, with_numbers
from agm._one_pass.shape_rules import SHAPE_RULES
from agm._one_pass.synchronised import Exchange

__all__ = ["DEPENDS", "READS", "RowSplit"]

_RULES: dict[str, Rule] = {
    name: rule for names, rule in (*LAYER_RULES, *SHAPE_RULES, *MODE_RULES) for name in names.split()
}
_COUNTING = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "expand", "repeat", "tile"}
_SIZED = _COUNTING | {"view", "reshape", "unflatten"}
# Write to what they are given where they are told to by position.
_MAY_WRITE = {"relu", "relu6", "elu", "celu", "selu", "hardtanh", "leaky_relu", "silu", "mish", "hardsigmoid"}
_MAY_WRITE |= {"hardswish", "threshold", "rrelu"}
# Give another name to the memory of a tensor that autograd does not follow.
_ALIASES = frozenset(("detach", "detach_", "get.data", "set.data"))

_resolved: dict[Any, tuple[str, Rule | None]] = {}


def _resolve(func: Callable[..., Any]) -> tuple[str, Rule | None]:
    """The name of a function of torch, without what says that it writes in place, and its rule."""
    name = getattr(func, "__name__", None) or str(func)
    if name in ("__get__", "__set__"):
        name = f"{name[2:5]}.{func.__self__.__name__}"  # type: ignore[attr-defined]
    elif name == "unfold" and hasattr(func, "__objclass__"):
        name = "Tensor.unfold"
    home = getattr(func, "__module__", None) or "torch"
    rule = _RULES.get(name) if home.split(".")[0] == "torch" and not home.startswith("torch._ops") else None
    if name == "embedding" and func is not F.embedding:  # `torch.embedding` has its weight first
        rule = None
    if rule is None and name != "detach_" and _is_in_place(name) and _RULES.get(name[:-1]) is pointwise:
        rule = pointwise
    return name, rule


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


class RowSplit(TorchFunctionMode):
    """Inside, all but the first rows of a batch are treated as in eval mode, by modules in training mode.

    The rows are followed through every function of torch. Norms normalise the train rows with their own statistics, and
    the others with the running ones as they then are; these are written by `commit`. Dropouts act on the train rows
    alone, and draw what they would for these by themselves. Functions that are known to treat rows alike run on all of
    them; at any other `Unsplit` is raised.

    Args:
        train_rows: rows in training mode, which come first.
        rows: all of them, at least 2.
        origins: of the tensors that may be given to functions.
        serves: whether nothing may depend on the mode.
        expected: what runs, as `ran` gives it, where modules have been seen to read their mode; None: they may not.
        records: whether to note what runs.

    Attributes:
        ran: the functions that have run, with what was given to them beside tensors.
        failed: the first `Unsplit`, which code inside may have caught.
        exchange: what a norm makes of train rows, while one runs that exchanges statistics with other processes.
        batches: how many a norm has counted before, while one runs whose statistics are averages of all batches.
    """

    def __init__(
        self,
        train_rows: int,
        rows: int,
        origins: Origins,
        *,
        serves: bool = False,
        expected: Sequence[Any] | None = None,
        records: bool = False,
    ) -> None:
        super().__init__()
        self.train_rows = train_rows
        self.rows = rows
        self.origins = origins
        self.serves = serves
        self.expected = expected
        self.records = records or expected is not None
        self.ran: list[Any] = []
        self.failed: Unsplit | None = None
        self.exchange: Exchange | None = None
        self.batches: Tensor | None = None
        self._is_told = False  # whether what runs was given the mode
        self._read_by = ""  # the layer of torch's that has read its mode
        self._generators: dict[torch.device, Callable[[], None]] = {}  # puts back their state before the first draw
        self._known: dict[int, tuple[weakref.ref[Tensor], Layout, bool]] = {}
        self._fresh: dict[int, weakref.ref[Tensor]] = {}
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._counters = Counters()
        self._touched: set[int] = set()  # tensors without rows that functions were given
        self._hook = packing_hook()
        self._gradients = torch.is_grad_enabled()

    # What rules ask for.

    def of(self, tensor: Tensor) -> Layout | None:
        """Where a tensor has the rows; None: it has none."""
        found = self._known.get(id(tensor))
        if found is None or found[0]() is not tensor:
            return None
        if found[2] is not tensor.requires_grad:
            raise Unsplit("it calls a torch.autograd.Function, of whose backward nothing is known")
        return found[1]

    def note(self, value: Any, layout: Layout) -> Any:
        """The tensors of a result have the rows there."""
        for tensor in (value,) if isinstance(value, Tensor) else tensors_in((value,)):
            size = tensor.shape[layout.dim]
            if size % (layout.outer * self.rows) or not size:
                raise meet(f"it makes {tuple(tensor.shape)} of {self.rows} rows")
            self._known[id(tensor)] = (weakref.ref(tensor), layout, tensor.requires_grad)
        return value

    def enters(self, tensor: Tensor, label: object) -> Tensor:
        """A tensor that the pass is given, whose first dimension has the rows."""
        self.origins.add(tensor, label)
        return self.note(tensor, Layout(0))  # type: ignore[no-any-return]

    def fresh(self, value: Any, given: Iterable[Any] = ()) -> Any:
        """The tensors of a result were made here, and may be written to, but for the memory of what was given."""
        tensors = (value,) if isinstance(value, Tensor) else tuple(tensors_in((value,)))
        if tensors:
            foreign = {_memory(one) for one in tensors_in(given) if not self._is_fresh(one)}
            for tensor in tensors:
                if _memory(tensor) not in foreign:
                    self._fresh[id(tensor)] = weakref.ref(tensor)
        return value

    def sizes(self, size: int) -> list[int]:
        """How a dimension with the rows is parted into train rows and the others."""
        return [self.train_rows * (size // self.rows), (self.rows - self.train_rows) * (size // self.rows)]

    def train_size(self, x: Tensor, name: str) -> int:
        """How many rows of the first dimension are in training mode."""
        if self.of(x) != Layout(0):
            raise meet(f"it gives `{name}` a tensor whose rows are not in the first dimension")
        return self.sizes(x.shape[0])[0]

    def acts(self) -> bool:
        """Whether a function that depends on the mode has rows of both kinds; else it runs as it is.

        Raises:
            Unsplit: it acts in eval mode too, as far as one can see.
        """
        if self.serves:
            raise Unsplit(DEPENDS)
        if not self.train_rows or not (self._is_told or self.records):
            raise Unsplit("it draws random numbers in eval mode too, or normalises as in training")
        return self.train_rows < self.rows

    def draws(self, x: Tensor) -> None:
        """Random numbers are about to be drawn: what is undone can be drawn again."""
        if x.device in self._generators:
            return
        if x.is_cuda and not is_capturing():
            state = torch.cuda.get_rng_state(x.device)
            self._generators[x.device] = partial(torch.cuda.set_rng_state, state, x.device)
        elif not x.is_cuda:
            self._generators[x.device] = partial(torch.set_rng_state, torch.get_rng_state())

    def is_pending(self, buffer: Tensor | None) -> bool:
        return id(buffer) in self._pending

    def write_later(self, buffers: Iterable[Tensor], values: Iterable[Tensor]) -> None:
        """What `commit` writes into buffers."""
        for buffer, value in zip(buffers, values, strict=True):
            if id(buffer) in self._touched:
                raise Unsplit("it reads running statistics before they are updated")
            self._pending[id(buffer)] = (buffer, value)

    def read_mode(self) -> None:
        """Code reads whether a module is in training mode; that of torch's layers does as they do."""
        home = sys._getframe(2).f_globals.get("__name__", "")
        if home.startswith("torch.nn.modules."):
            self._read_by = home
        else:
            self.read()

    def read(self) -> None:
        """Code reads what is another number in one pass."""
        if not self.records:
            raise self.fail(Unsplit(READS))

    # What the pass around it asks for.

    def commit(self) -> None:
        """Writes what norms have found."""
        with torch.no_grad():
            if self._pending:
                buffers, values = zip(*self._pending.values(), strict=True)
                # As torch's norms write, without a version: an earlier call of the encoder may have saved them.
                torch._foreach_copy_([buffer.data for buffer in buffers], list(values))
        self._counters.commit()

    def undo(self) -> None:
        """Puts back what has been written and drawn already."""
        self._counters.undo()
        for put_back in self._generators.values():
            put_back()

    def finish(self, features: Any, structure: Any) -> None:
        """That nothing went wrong unseen.

        Args:
            features: what the pass has made.
            structure: of these.

        Raises:
            Unsplit: something did.
        """
        if self.failed is not None:
            raise self.failed
        if self.records:
            self.record((structure, told_call("", features, {}, self.origins, 0)))
        if self.expected is not None and len(self.ran) != len(self.expected):
            raise Unsplit(OTHERWISE)

    # What runs.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _resolved.get(func)
        if found is None:
            found = _resolved[func] = _resolve(func)
        name, rule = found
        kwargs = kwargs or {}
        try:
            self._look_around()
            self._is_told = name in _OF_MODES and self._tells_mode(name, args, kwargs)
            if self._is_told:
                args = [True if type(value) is Mode else value for value in args]
                kwargs = {key: True if type(value) is Mode else value for key, value in kwargs.items()}
            rows, constants = self._parted(args, kwargs)
            if rows and rule is None and name.rstrip("_") in DRAWING:
                raise Unsplit(f"it draws random numbers (`{name}`)")
            if rows and rule is None:
                raise Unsplit(f"it calls `{name}`, which is not known to treat rows alike")
            if rows and kwargs.get("out") is not None:
                raise Unsplit(f"it writes to a tensor of its own (`{name}`)")
            if not rows and self._counts_later(name, args, kwargs):
                return args[0]
            for tensor in constants:
                self._reads(name, tensor)
            if rows and name == "__len__":
                self.read()
            told = told_call(name, args, kwargs, self.origins, self.rows if rows else 0) if self.records else None
            if rows:
                assert rule is not None
                if name not in _SIZED:
                    no_counts(name, (*args, *kwargs.values()))
                result = rule(self, with_numbers(func) if name in _SIZED else func, args, kwargs)
            else:
                result = self._without_rows(func, name, rule, args, kwargs)
            has_tensors = self.origins.add(result, len(self.ran))
            if self.records and (has_tensors or result is None):
                self.record(told)
            self._touched.update(map(id, constants))
            return result
        except Unsplit as error:
            raise self.fail(error) from None

    def _tells_mode(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a function is given the mode of a module: as it is, or read by a norm of torch's."""
        if name == "batch_norm":
            read_by, self._read_by = self._read_by, ""
            if read_by == _NORMS:
                return True
        return any(type(value) is Mode for value in (*args, *kwargs.values()))

    def fail(self, error: Unsplit) -> Unsplit:
        self.failed = self.failed or error
        return error

    def _look_around(self) -> None:
        if packing_hook() is not self._hook:
            raise Unsplit("it has an activation checkpoint inside")
        if self._gradients and not torch.is_grad_enabled() and reentrant_checkpoint() is not None:
            raise Unsplit("it has an activation checkpoint inside")

    def _parted(self, args: Iterable[Any], kwargs: dict[str, Any]) -> tuple[bool, list[Tensor]]:
        """Whether arguments have rows, and the tensors that have none."""
        rows, constants = False, []
        for tensor in tensors_in((*args, *kwargs.values()) if kwargs else args):
            if self.of(tensor) is None:
                self.origins.of(tensor)
                constants.append(tensor)
            else:
                rows = True
        return rows, constants

    def _counts_later(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a function does no more than count, which is done later."""
        if name != "add_" or not isinstance(args[0], Tensor):
            return False
        if args[0] in self._counters:
            raise Unsplit(TWICE)
        if not self._counters.takes(name, args, kwargs):
            return False
        if id(args[0]) in self._touched:
            raise Unsplit("it reads a counter before it counts")
        return True

    def _reads(self, name: str, tensor: Tensor) -> None:
        if id(tensor) in self._pending and name not in _OF_MODES:
            raise Unsplit("it reads running statistics after they have been updated")
        self._counters.catch_up(tensor)

    def _without_rows(
        self, func: Callable[..., Any], name: str, rule: Rule | None, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """A function of tensors that are the same for all rows."""
        values = (*args, *kwargs.values())
        if _tells(values):
            if name not in _COUNTING or rule is None:
                raise Unsplit(f"it gives `{name}` the number of rows, which is another one in one pass")
            return rule(self, with_numbers(func), args, kwargs)
        if name.rstrip("_") in DRAWING:
            raise Unsplit(f"it draws random numbers (`{name}`)")
        if name in _OF_MODES and name != "_set_grad_enabled":
            raise Unsplit(f"it gives `{name}`, which depends on the mode, a tensor without rows")
        in_place = _is_in_place(name) or name in ("__setitem__", "set.data") or kwargs.get("out") is not None
        in_place = in_place or bool(kwargs.get("inplace")) or (name in _MAY_WRITE and True in map(_is_true, args))
        target = kwargs.get("out", args[0] if args else None)
        if in_place and not (isinstance(target, Tensor) and self._is_fresh(target)):
            raise Unsplit(f"it writes to a tensor of its own (`{name}`)")
        result = func(*args, **kwargs)
        return result if name in _ALIASES else self.fresh(result, values)

    def _is_fresh(self, tensor: Tensor) -> bool:
        found = self._fresh.get(id(tensor))
        return found is not None and found() is tensor

    def record(self, entry: Any) -> None:
        if self.expected is not None:
            place = len(self.ran)
            if place >= len(self.expected) or self.expected[place] != entry:
                raise Unsplit(OTHERWISE)
        self.ran.append(entry)


def _is_true(value: Any) -> bool:
    return value is True


def _memory(tensor: Tensor) -> object:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


DEPENDS = "it depends on the mode"
READS = "its code asks for its mode, or for the number of rows"
OTHERWISE = f"{READS}, and runs otherwise than in a batch that was looked at"
_OF_MODES = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"]).union(*(names.split() for names, _ in MODE_RULES))
_NORMS = "torch.nn.modules.batchnorm"


def _tells(values: Iterable[Any]) -> bool:
    """Whether the number of rows is among arguments, or the mode."""
    for value in values:
        if type(value) in (RowCount, Mode) or (isinstance(value, (list, tuple)) and _tells(value)):
            return True
        if type(value) is slice and _tells((value.start, value.stop, value.step)):
            return True
    return False
