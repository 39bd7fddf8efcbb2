"""Norms that exchange statistics with other processes: once in each call of an encoder, however often that is tried."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from agm._inputs.trees import leaves_of
from agm._module_state.replace_forward import answering
from agm._module_state.undo import putting_back
from agm._one_pass.layouts import Layout, Mode, Unsplit
from agm._one_pass.rules import put_together

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = ["Exchange", "Exchanges", "Reach", "has_own_way", "is_exchanging", "split_exchange"]

Exchange = Callable[[Tensor], "Exchanged"]  # what a norm makes of the train rows


def is_exchanging(layer: nn.Module) -> bool:
    """Whether it is a norm that in training mode exchanges statistics with other processes."""
    if not isinstance(layer, nn.SyncBatchNorm) or not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(layer.process_group or distributed.group.WORLD) > 1


def has_own_way(layer: nn.Module) -> bool:
    """Whether a norm that exchanges statistics does something else than torch's."""
    own = layer.__dict__.get("forward")
    return type(layer) is not nn.SyncBatchNorm or getattr(own, "__func__", own) not in (None, type(layer).forward)


@dataclass
class Exchanged:
    """What became of one exchange.

    Attributes:
        norm: that exchanged its statistics.
        shape: of the train rows.
        buffers: name -> what is in the buffer after the exchange.
        output: what the norm made of the train rows, with the graph that exchanges in the backward.
        error: what it raised instead.
    """

    norm: nn.Module
    shape: torch.Size
    buffers: dict[str, Tensor]
    output: Any = None
    error: Exception | None = None


class Exchanges:
    """What the norms of an encoder exchange with other processes in one call of it, in the order of the exchanges.

    A pass that ends before its end is repeated. What had been exchanged by then is not exchanged again: the other
    processes, whose pass went on, would take it for the exchange of another layer, or wait for ever. The repetition is
    given what the norms returned before, up to the place that had been reached. The graph of what they returned is
    kept, so that the backward exchanges once for each exchange of the forward, in the opposite order, as everywhere.

    A pass that only looks at what runs has rows of one kind, and exchanges nothing.

    Args:
        modules: of the encoder.

    Attributes:
        norms: those that exchange statistics in training mode.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.norms = [one for one in modules if isinstance(one, nn.SyncBatchNorm) and is_exchanging(one)]
        self._done: list[Exchanged] = []
        self._place = 0  # how many exchanges this run of the encoder has come to

    def within(self, split: RowSplit) -> AbstractContextManager[None]:
        """Inside, the encoder runs from its start, and norms exchange what their train rows have."""
        self._place = 0
        return self._answering(partial(self._told, split))

    def repeated(self) -> AbstractContextManager[None]:
        """Inside, the encoder runs from its start, on the rows of the joint pass."""
        self._place = 0
        return self._answering(self._again) if self._done else nullcontext()

    def _answering(self, answer: Callable[..., Any]) -> AbstractContextManager[None]:
        if not self.norms:
            return nullcontext()
        return answering({norm: partial(answer, norm, norm.forward) for norm in self.norms})

    def _told(self, split: RowSplit, norm: Any, forward: Callable[..., Any], input: Tensor) -> Any:
        """A norm as the function that it is in eval mode, whose rule finds in the pass how it exchanges."""
        training = norm.__dict__["training"]
        if training is False:
            return forward(input)
        if not isinstance(training, Mode):
            raise split.fail(Unsplit("it changes its mode"))
        momentum = 0.0 if norm.momentum is None else norm.momentum
        split.exchange = partial(self.exchange, norm)
        try:
            told = cast(bool, training)
            statistics = (norm.running_mean, norm.running_var)
            return F.batch_norm(input, *statistics, norm.weight, norm.bias, told, momentum, norm.eps)
        finally:
            split.exchange = None

    def exchange(self, norm: nn.Module, x: Tensor) -> Exchanged:
        """What a norm makes of train rows: as it did before, if the encoder has come to this place before.

        Raises:
            RuntimeError: it came to another norm then, or to other rows.
        """
        self._place += 1
        if self._place > len(self._done):
            return self._exchanged(norm, x)
        found = self._done[self._place - 1]
        if found.norm is not norm or found.shape != x.shape:
            raise _otherwise()
        if found.error is not None:
            raise found.error
        return found

    def _exchanged(self, norm: nn.Module, x: Tensor) -> Exchanged:
        before = {name: buffer for name, buffer in norm._buffers.items() if buffer is not None}
        found = Exchanged(norm, x.shape, {name: buffer.clone() for name, buffer in before.items()})
        mode = norm.__dict__["training"]

        def put_back() -> None:
            norm._buffers.update(before)
            norm.__dict__["training"] = mode

        def begin() -> None:
            norm._buffers.update(found.buffers)
            norm.__dict__["training"] = True

        self._done.append(found)
        with putting_back(put_back, begin):
            try:
                found.output = type(norm).forward(norm, x)
            except Exception as error:
                found.error = error
                raise
        return found

    def check(self) -> None:
        """That the repetition has come as far as what was repeated.

        Raises:
            RuntimeError: it has not.
        """
        if self._place < len(self._done):
            raise _otherwise()

    def nodes(self) -> list[Any]:
        """Those of the graph that exchange in the backward; None for each that has no gradient."""
        return [found.output.grad_fn for found in self._done]

    def _again(self, norm: nn.Module, forward: Callable[..., Any], input: Tensor) -> Any:
        if not norm.training or self._place >= len(self._done):
            return forward(input)
        found = self.exchange(norm, input)
        with torch.no_grad():
            for name, value in found.buffers.items():
                norm._buffers[name].copy_(value)  # type: ignore[union-attr]
        return found.output


class Reach:
    """Which norms the backward of one pass comes to, through train rows and through the rows that went with them.

    Gradients of both go through all norms before them. By themselves the other rows would come to none that exchanges.

    Args:
        exchanges: of the pass.
        features: of its train rows, views of those of all rows.
    """

    def __init__(self, exchanges: Exchanges, features: Any) -> None:
        self._norms = {node for node in exchanges.nodes() if node is not None}
        leaves = leaves_of(features) if self._norms else ()
        views = [leaf.grad_fn for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() and leaf.requires_grad]
        self._features = {view.next_functions[0][0] for view in views if view is not None}

    def is_that_of(self, joint: Tensor) -> bool:
        """Whether the backward from what the joint pass returned comes to as many norms as that from all features."""
        left = _missed({joint.grad_fn}, self._features)
        if not left:  # as nearly always, and no more than the fusion is looked at
            return True
        return not _missed({joint.grad_fn}, self._norms, beyond=True) - _missed(left, self._norms, beyond=True)


def _missed(roots: Collection[Any], wanted: Collection[Any], beyond: bool = False) -> set[Any]:
    """The nodes of a graph that do not come before its roots; whether to look `beyond` those that do."""
    left, seen, pending = set(wanted), {None}, list(roots)
    while pending and left:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in left:
            left.remove(node)
            if not beyond:
                continue
        pending.extend(before for before, _ in node.next_functions)
    return left


def _otherwise() -> RuntimeError:
    return RuntimeError(
        "Expected an encoder whose norms exchange statistics with other processes (SyncBatchNorm) to call them in the "
        "same order when it is given the same batch again, but it did not, and the other processes cannot be told. Use "
        "passes='two'."
    )


def split_exchange(split: RowSplit, exchange: Exchange, given: dict[str, Any], train: int) -> Tensor:
    """Batch norm of train rows by what all processes have, and of the others by the statistics just updated."""
    x = given["input"]
    found = exchange(x[:train])
    norm, updated = found.norm, found.buffers
    split.write_later([norm._buffers[name] for name in updated], list(updated.values()))  # type: ignore[misc]
    mean, var = updated.get("running_mean"), updated.get("running_var")
    of_batch = mean is None and var is None  # as in eval mode, where nothing is exchanged
    rest = F.batch_norm(x[train:], mean, var, given.get("weight"), given.get("bias"), of_batch, 0.0, given["eps"])
    return split.note(put_together([found.output, rest]), Layout(0))  # type: ignore[no-any-return]
