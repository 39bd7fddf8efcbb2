"""One pass through an encoder for the rows of the joint pass and for those of the masked passes."""

import pickle
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agm._inputs.absent import is_opaque
from agm._inputs.shared_memory import shares_memory
from agm._inputs.trees import flattened, leaves_of, mapped, unflattened
from agm._module_state.checkpoints import end_checkpoints
from agm._module_state.eval_mode import evaluation
from agm._module_state.hooks import have_hooks, without_hooks
from agm._module_state.iterators import StandIns
from agm._module_state.modules import submodules
from agm._module_state.traces import Attributes, is_own
from agm._module_state.undo import Contexts, putting_back
from agm._one_pass.averaging import averaging_on_device
from agm._one_pass.layouts import Mode, RowCount, Unsplit, telling_rows
from agm._one_pass.own_modes import check_mode, telling_around
from agm._one_pass.records import Origins
from agm._one_pass.row_split import READS, RowSplit
from agm._one_pass.rules import put_together
from agm._one_pass.synchronised import Exchanges
from agm._one_pass.two_passes import Check, leaving_nothing

__all__ = ["ALIASES", "Given", "split_pass", "what_runs"]

ALIASES = "it returns the very memory that it is given"

_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
_RAISED = (Unsplit, MemoryError, torch.OutOfMemoryError)  # as they are
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
    exchanges: Exchanges | None = None,
    aliases: bool = False,
    network: nn.Module | None = None,
    again: bool = False,
    dims: dict[int, int] | None = None,
    wholes: dict[int, Tensor] | None = None,
    check: Check | None = None,
) -> tuple[Any, Any]:
    """Features of a batch as the encoder's modes have it, and of more rows as in eval mode, in one pass.

    Args:
        encoder: in the modes of the joint pass.
        given: its arguments, by position and by name.
        rows: tensor among these, by its id -> the rows that go with it.
        batch: how many rows such a tensor has.
        more: how many rows go with it.
        again: whether the batch goes with itself once more, before these.
        serves: whether nothing may depend on the mode, so that the features of the batch are those of eval mode too.
        expected: what runs (see `what_runs`), of an encoder whose modules read their mode; None: they may not.
        exchanges: what its norms exchange with other processes in this call of it; None: nothing so far.
        aliases: whether features that are the input's own memory must stay it.
        network: of which it is a part, and whose modules its code may look at or write to; None: itself.
        dims: gets the dimension of the rows of each tensor in the second one, by its id.
        wholes: gets what both are parts of, by the same, where the rows are in the first dimension.
        check: refuses features that are not those of two passes; None: nothing does.

    Returns:
        two pytrees as the encoder returns them.

    Raises:
        Unsplit: it cannot be told whether that is the same as two passes; everything is as before.
    """
    modules = submodules(encoder)
    if have_hooks(modules):  # which forward has registered since the pass was chosen
        raise Unsplit("it has hooks, which would see train rows and eval rows as one batch")
    exchanges = Exchanges(modules) if exchanges is None else exchanges
    if exchanges.norms and torch.is_grad_enabled():
        _check_gradients(leaves_of(given), rows)
    around = _around(network, modules)
    own = [module for module in (*modules, *around) if is_own(module)]
    attributes = Attributes([*modules, *around], own)
    iterators = StandIns(attributes.kept, attributes.held)
    if not iterators.are_all:
        raise Unsplit("it has an iterator that cannot be copied (a generator), or a module beside it has one")
    drawn = _drawn(own) if own else None
    origins = Origins(modules, leaves_of(given))
    split = RowSplit(batch, batch + more, origins, serves=serves, expected=expected)
    joined: dict[int, tuple[Tensor, Tensor]] = {}

    def join(leaf: Any) -> Any:
        if id(leaf) not in rows:
            return leaf
        if id(leaf) not in joined:
            both = put_together([leaf, leaf, rows[id(leaf)]] if again else [leaf, rows[id(leaf)]])
            joined[id(leaf)] = leaf, split.enters(both, ("rows", list(rows).index(id(leaf))))
        return joined[id(leaf)][1]

    args, kwargs = mapped(join, given)
    iterators.begin()
    try:
        modes = _Modes(modules, around, split)
        features, structure = _run(encoder, modules, modes, args, kwargs, split, exchanges)
        split.finish(features, structure)
        if have_hooks(modules):
            raise Unsplit("it registers hooks")
        if iterators.have_moved():
            raise Unsplit("it draws from an iterator")
        iterators.put_back()
        if attributes.have_changed():
            raise Unsplit("it keeps something in its attributes")
        if own and drawn != _drawn(own):
            raise Unsplit("it draws random numbers of Python or NumPy")
        if aliases and shares_memory(features, [both for _, both in joined.values()]):
            raise Unsplit(ALIASES)
        parted = _parted(split, features, structure, {} if dims is None else dims, wholes)
        if check is not None:
            check(*parted)
        for leaf, both in joined.values():
            if both._version:  # what the encoder has written to its input is seen by others too
                leaf.copy_(both[:batch])
    except BaseException as error:
        end_checkpoints(error)
        without_hooks(modules)  # as they were
        iterators.put_back()
        attributes.put_back()
        split.undo()
        if drawn is not None:
            _draw_again(drawn, own)
        if isinstance(error, _RAISED) or not isinstance(error, Exception):
            raise
        # If two passes raise it too, it is theirs.
        raise split.failed or Unsplit(f"one pass raises {type(error).__name__}: {error}") from error
    split.commit()
    return parted


def _check_gradients(leaves: Sequence[Any], rows: Mapping[int, Tensor]) -> None:
    """That train rows have a gradient in one pass where they have one by themselves, since only then norms exchange it.

    Raises:
        Unsplit: only the rows that go with them have one.
    """
    more = [(leaf, rows[id(leaf)]) for leaf in leaves if id(leaf) in rows]
    if any(one.requires_grad and not leaf.requires_grad for leaf, one in more):
        raise Unsplit("its norms would exchange a gradient that its absent rows have (they are learnt) and others not")


def _around(network: nn.Module | None, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules of a network beside those of its encoder."""
    if network is None:
        return []
    inside = set(modules)
    return [module for module in submodules(network) if module not in inside]


def _run(
    encoder: nn.Module,
    modules: Sequence[nn.Module],
    modes: "_Modes",
    args: Any,
    kwargs: Any,
    split: RowSplit,
    exchanges: Exchanges,
) -> tuple[list[Any], Any]:
    """Leaves of the features, and their structure."""
    with averaging_on_device(modules, split), modes.told(), exchanges.within(split), split:
        features = encoder.forward(*args, **kwargs)  # it stands in for that, inside a call of the encoder
        modes.check()
    return flattened(features, is_leaf=is_opaque)


def _parted(
    split: RowSplit, leaves: Sequence[Any], structure: Any, dims: dict[int, int], wholes: dict[int, Tensor] | None
) -> tuple[Any, Any]:
    first, others = [], []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.dim():
            layout = split.of(leaf)
            if layout is None or layout.outer != 1:
                raise Unsplit(f"it returns {tuple(leaf.shape)}, of which it is not known where the rows are")
            train, rest = split.sizes(leaf.shape[layout.dim])
            first.append(leaf.narrow(layout.dim, 0, train))
            others.append(leaf.narrow(layout.dim, train, rest))
            dims[id(others[-1])] = layout.dim
            if wholes is not None and layout.dim == 0:
                wholes[id(others[-1])] = leaf
            continue
        if is_opaque(leaf) or type(leaf) in (RowCount, Mode):
            raise Unsplit(f"it returns a {type(leaf).__name__}, whose rows cannot be told apart")
        first.append(leaf)
        others.append(leaf)
    return unflattened(first, structure), unflattened(others, structure)


class _Modes:
    """Modules in training mode that tell where code of an encoder reads that.

    Args:
        modules: of the encoder.
        around: those of its network beside these.
        split: is told.

    Raises:
        Unsplit: one has a mode of its own.
    """

    def __init__(self, modules: Sequence[nn.Module], around: Sequence[nn.Module], split: RowSplit) -> None:
        # Recurrent layers hand theirs to a function that takes none but true and false, and whose rule sees to it.
        training = [module for module in modules if module.training and type(module) not in _RECURRENT]
        for module in training:
            check_mode(module)
        training += telling_around(modules, around)
        modules = [*modules, *around]
        self._split = split
        self._telling = Mode.telling(split.read_mode)
        self._told = set(training)
        self._before = [(module, module.__dict__["training"]) for module in modules if "training" in module.__dict__]

    def told(self) -> AbstractContextManager[None]:
        """Inside, they tell, and so do the numbers of rows."""
        return Contexts(
            lambda: putting_back(self._put_back, self._tell),
            lambda: telling_rows(self._split.read, self._split.fail),
        )

    def check(self) -> None:
        """That they are as they were, inside.

        Raises:
            Unsplit: code has changed a mode.
        """
        for module, before in self._before:
            if module.__dict__.get("training") is not (self._telling if module in self._told else before):
                raise Unsplit("it changes its mode")

    def _tell(self) -> None:
        for module in self._told:
            module.__dict__["training"] = self._telling

    def _put_back(self) -> None:
        for module, before in self._before:
            module.__dict__["training"] = before


def _drawn(own: Sequence[nn.Module]) -> tuple[Any, ...]:
    """What another draw of Python's or NumPy's generators would change, also of those that modules keep."""
    kept = [pickle.dumps(generator) for generator in _generators(own)]
    return random.getstate(), kept, pickle.dumps(np.random.get_state(legacy=False))


def _draw_again(state: tuple[Any, ...], own: Sequence[nn.Module]) -> None:
    python, kept, numpy = state
    random.setstate(python)
    np.random.set_state(pickle.loads(numpy))
    for generator, before in zip(_generators(own), kept, strict=True):
        then = pickle.loads(before)
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = then.bit_generator.state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(then.get_state())
        else:
            generator.setstate(then.getstate())


def _generators(own: Sequence[nn.Module]) -> list[Any]:
    kinds = (np.random.Generator, np.random.RandomState, random.Random)
    return [value for module in own for value in vars(module).values() if isinstance(value, kinds)]


def what_runs(
    encoder: nn.Module,
    given: Given,
    rows: Mapping[int, Tensor],
    batch: int,
    more: int,
    network: nn.Module | None = None,
) -> Sequence[Any]:
    """What runs in an encoder whose modules read their mode: the same functions in training and in eval mode.

    Two passes, which leave nothing behind. The mode is that of the network, if there is one around.

    Raises:
        Unsplit: other functions run in eval mode, or that cannot be told.
    """
    if batch < 2:
        raise Unsplit(f"{READS}, and of one sample nothing can be told")
    modules, runs = submodules(encoder), []
    whole = encoder if network is None else network
    around = _around(network, modules)
    exchanges = Exchanges(modules)
    attributes = Attributes([*modules, *around])
    iterators = StandIns(attributes.kept, attributes.held)
    with leaving_nothing(encoder, rows, attributes, iterators):
        for train, count in ((batch, batch), (0, max(more, 2))):
            split = RowSplit(train, count, Origins(modules, leaves_of(given)), records=True)
            args, kwargs = mapped(partial(_placed, split, rows, count), given)
            try:
                if train:
                    modes = _Modes(modules, around, split)
                    features, structure = _run(encoder, modules, modes, args, kwargs, split, exchanges)
                else:
                    with telling_rows(split.read, split.fail), evaluation(whole), exchanges.within(split), split:
                        output = encoder.forward(*args, **kwargs)
                    features, structure = flattened(output, is_leaf=is_opaque)
            except BaseException as error:
                end_checkpoints(error)
                if isinstance(error, _RAISED) or not isinstance(error, Exception):
                    raise
                # Of rows that no pass has, perhaps.
                raise split.failed or Unsplit(f"a look at it raises {type(error).__name__}: {error}") from error
            split.finish(features, structure)
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
    return split.enters(source.clone(), ("rows", list(rows).index(id(leaf))))
