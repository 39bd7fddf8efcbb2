"""One pass through an encoder for the rows of the joint pass and for those of the masked passes."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agm._inputs.absent import is_opaque
from agm._inputs.trees import flattened, mapped, unflattened
from agm._module_state.eval_mode import evaluation
from agm._module_state.modules import submodules
from agm._module_state.traces import Attributes, is_own
from agm._module_state.undo import putting_back
from agm._module_state.untouched import untouched
from agm._one_pass.layouts import Layout, Mode, RowCount, Unsplit, telling_rows
from agm._one_pass.row_split import READS, RowSplit

__all__ = ["Given", "split_pass", "what_runs"]

Given = tuple[tuple[Any, ...], dict[str, Any]]


def split_pass(
    encoder: nn.Module,
    given: Given,
    rows: Mapping[int, Tensor],
    batch: int,
    more: int,
    *,
    serves: bool,
    expected: Sequence[Any] | None = None,
) -> tuple[Any, Any]:
    """Features of a batch as the encoder's modes have it, and of more rows as in eval mode, in one pass.

    Args:
        encoder: in the modes of the joint pass.
        given: its arguments, by position and by name.
        rows: tensor among these, by its id -> the rows that go with it.
        batch: how many rows such a tensor has.
        more: how many rows go with it.
        serves: whether nothing may depend on the mode, so that the features of the batch are those of eval mode too.
        expected: what runs (see `what_runs`), of an encoder whose modules read their mode; None: they may not.

    Returns:
        two pytrees as the encoder returns them.

    Raises:
        Unsplit: it cannot be told whether that is the same as two passes; everything is as before.
    """
    modules = submodules(encoder)
    own = [module for module in modules if is_own(module)]
    attributes = Attributes(own)
    drawn = _drawn() if own else None
    split = RowSplit(batch, batch + more, serves=serves, expected=expected)
    joined: dict[int, tuple[Tensor, Tensor]] = {}

    def join(leaf: Any) -> Any:
        if id(leaf) not in rows:
            return leaf
        if id(leaf) not in joined:
            joined[id(leaf)] = leaf, split.note(torch.cat([leaf, rows[id(leaf)]]), Layout(0))
        return joined[id(leaf)][1]

    args, kwargs = mapped(join, given)
    try:
        with _telling_modes(modules, split), split:
            features = encoder(*args, **kwargs)
        split.finish()
        if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
            raise Unsplit("it registers hooks")
        if attributes.have_changed():
            raise Unsplit("it keeps something in its attributes")
        if own and drawn != _drawn():
            raise Unsplit("it draws random numbers of Python or NumPy")
        parted = _parted(split, features, batch, more)
        for leaf, both in joined.values():
            if both._version:  # what the encoder has written to its input is seen by others too
                leaf.copy_(both[:batch])
    except BaseException as error:
        _without_hooks(modules)  # as they were
        attributes.put_back()
        split.undo()
        if drawn is not None:
            _draw_again(drawn)
        if isinstance(error, (Unsplit, MemoryError, torch.OutOfMemoryError)) or not isinstance(error, Exception):
            raise
        # If two passes raise it too, it is theirs.
        raise split.failed or Unsplit(f"one pass raises {type(error).__name__}: {error}") from error
    split.commit()
    return parted


def _without_hooks(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()


def _parted(split: RowSplit, features: Any, batch: int, more: int) -> tuple[Any, Any]:
    leaves, structure = flattened(features, is_leaf=is_opaque)
    first, others = [], []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.dim():
            layout = split.of(leaf)
            if layout is None or layout.outer != 1:
                raise Unsplit(f"it returns {tuple(leaf.shape)}, of which it is not known where the rows are")
            train, rest = split.sizes(leaf.shape[layout.dim])
            first.append(leaf.narrow(layout.dim, 0, train))
            others.append(leaf.narrow(layout.dim, train, rest))
            continue
        if is_opaque(leaf) or type(leaf) in (RowCount, Mode):
            raise Unsplit(f"it returns a {type(leaf).__name__}, whose rows cannot be told apart")
        first.append(leaf)
        others.append(leaf)
    return unflattened(first, structure), unflattened(others, structure)


@contextmanager
def _telling_modes(modules: Sequence[nn.Module], split: RowSplit) -> Iterator[None]:
    """Inside, modules in training mode tell where their code reads that."""
    # Recurrent layers hand theirs to a function that takes none but true and false, and whose rule sees to it.
    training = [module for module in modules if module.training and not isinstance(module, nn.RNNBase)]
    if any(hasattr(type(module), "training") for module in training):
        raise Unsplit("it has a mode of its own (`training`)")
    mode = Mode.telling(split.read_mode)

    def put_back() -> None:
        for module in training:
            if module.__dict__.get("training") is mode:
                module.__dict__["training"] = True

    with putting_back(put_back), telling_rows():
        for module in training:
            module.__dict__["training"] = mode
        yield
        if any(module.__dict__.get("training") is not mode for module in training):
            raise Unsplit("it changes its mode")


def _drawn() -> tuple[Any, ...]:
    """What another draw of Python's or NumPy's generators would change."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def _draw_again(state: tuple[Any, ...]) -> None:
    python, kind, keys, *rest = state
    random.setstate(python)
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))


def what_runs(encoder: nn.Module, given: Given, rows: Mapping[int, Tensor], batch: int, more: int) -> Sequence[Any]:
    """What runs in an encoder whose modules read their mode: the same functions in training and in eval mode.

    Two passes, which leave nothing behind.

    Raises:
        Unsplit: other functions run in eval mode, or that cannot be told.
    """
    if batch < 2:
        raise Unsplit(f"{READS}, and of one sample nothing can be told")
    runs = []
    with untouched(encoder, list(rows.values())), putting_back(Attributes(submodules(encoder)).put_back):
        for train, count in ((batch, batch), (0, max(more, 2))):
            split = RowSplit(train, count, records=True)
            args, kwargs = mapped(partial(_placed, split, rows, count), given)
            with _mode(encoder, split), split:
                encoder(*args, **kwargs)
            split.finish()
            runs.append(split.ran)
    if runs[0] != runs[1]:
        raise Unsplit(f"{READS}, and runs otherwise in eval mode")
    return runs[0]


def _placed(split: RowSplit, rows: Mapping[int, Tensor], count: int, leaf: Any) -> Any:
    """A copy of what is given in the joint pass, or of so many of the rows that go with it."""
    if id(leaf) not in rows:
        return leaf
    more = rows[id(leaf)]
    source = leaf if split.train_rows else more.expand(count, *more.shape[1:]) if len(more) == 1 else more
    return split.note(source.clone(), Layout(0))


@contextmanager
def _mode(encoder: nn.Module, split: RowSplit) -> Iterator[None]:
    with telling_rows(), _telling_modes(submodules(encoder), split) if split.train_rows else evaluation(encoder):
        yield
