"""Features of the present rows and of the absent ones, of an encoder that is called by itself."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agm._inputs.absent import is_rows
from agm._inputs.closeness import close
from agm._inputs.rows import blocks, combine, copied, stacked, whole_of, with_whole
from agm._inputs.samples import unwrap
from agm._inputs.trees import leaves_of, mapped
from agm._lazy_rows.tensor import Deferred, Rows
from agm._module_state.eval_mode import mixes_samples
from agm._module_state.modules import submodules
from agm._module_state.structure import Ways
from agm._module_state.traces import untraced
from agm._module_state.untouched import untouched
from agm._one_pass.known import Known
from agm._one_pass.synchronised import has_own_way, is_exchanging
from agm.distributed import is_sharded

__all__ = [
    "AnotherWay",
    "absent_features",
    "at_once",
    "deferred_leaf",
    "features_apart",
    "parted_features",
    "rows_meet",
    "written_leaf",
]


def in_two(encoder: nn.Module, given: Any, batch: int) -> tuple[Any, Any]:
    """What an encoder in which rows may meet makes of present rows, and of absent ones, each by themselves."""
    present, absent = _two(given, batch)
    with untouched(encoder, present):  # each finds what the joint pass has left
        features = encoder(unwrap(present))
    with untouched(encoder, absent):
        return features, absent_features(encoder, absent)


def rows_meet(encoder: nn.Module, run: Callable[[Any], Any], given: Any, few: Any) -> bool:
    """Whether an encoder makes something else of the first samples by themselves than among others, as it is now.

    Where it cannot tell, it is False.

    Args:
        encoder: on which nothing of it stays.
        run: calls it.
        given: what it would be given.
        few: the first samples of that.
    """
    modules = submodules(encoder)
    own_way = any(is_exchanging(module) and has_own_way(module) for module in modules)
    if own_way or any(map(is_sharded, modules)):  # each call of it may wait for the other processes
        return False
    try:
        with untouched(encoder, given), untraced(modules, nullcontext):
            alone = leaves_of(run(copied(few)))
        with untouched(encoder, given), untraced(modules, nullcontext):
            together = leaves_of(run(copied(given)))
    except Exception:
        return False
    for one, all_rows in zip(alone, together, strict=False):
        if not is_rows(one) or one.shape == all_rows.shape:
            continue
        dims = [d for d in range(one.dim()) if one.shape[d] != all_rows.shape[d]] if one.dim() == all_rows.dim() else []
        if len(dims) != 1 or not close(one, all_rows.narrow(dims[0], 0, one.shape[dims[0]])):
            return True
    return False


class Way(TorchFunctionMode):
    """Notes on which way an encoder goes, by the functions of torch that run one after the other.

    Where rows come to meet in a later batch (forward counts its calls, or looks at its values) another function runs.

    Attributes:
        steps: pairs of functions. A loop has the same, however long it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: Ways = set()
        self._last = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        now = hash(func)
        self.steps.add((self._last, now))
        self._last = now
        return func(*args, **(kwargs or {}))


class AnotherWay(RuntimeError):
    """Rows went another way through an encoder than those that have been looked at: the pass begins anew."""


def at_once(
    known: Known, call: tuple[str, int], run: Callable[[], Any], look: Callable[[], bool], watches: bool
) -> Any:
    """What an encoder makes of present rows and absent ones in one call; None: they may meet in it.

    Args:
        known: of earlier calls.
        call: the modality, and which call of its encoder.
        run: calls it.
        look: whether they meet in this batch, see `rows_meet`.
        watches: whether it may be seen on which way they go.

    Raises:
        AnotherWay: they may or not, for they went on ways that nobody has looked at.
    """
    if known.meet(call, look):
        return None
    if not watches:
        known.is_another(call, set())
        return run()
    with Way() as way:
        output = run()
    if known.is_another(call, way.steps):
        known.doubted.add(call)
        raise AnotherWay
    return output


def features_apart(
    name: str, encoder: nn.Module, given: Any, batch: int, known: Known, watches: bool
) -> tuple[Any, Any]:
    """Features of present and of absent rows, each by themselves where rows may meet.

    Args:
        name: of the modality.
        encoder: its encoder.
        given: present rows, and absent ones behind them.
        batch: how many samples there are.
        known, watches: as in `at_once`.
    """
    if torch.compiler.is_compiling():
        meet = name in known.mixes
        return in_two(encoder, given, batch) if meet else parted_features(name, encoder(unwrap(given)), batch)

    def look() -> bool:
        few = mapped(lambda leaf: leaf[: 2 if batch > 2 else 1] if is_rows(leaf) else leaf, given)
        return rows_meet(encoder, encoder, given, few)

    while True:
        try:
            features = at_once(known, (name, 0), lambda: encoder(unwrap(given)), look, watches)
        except AnotherWay:
            continue
        return in_two(encoder, given, batch) if features is None else parted_features(name, features, batch)


def absent_features(encoder: nn.Module, absent: Any) -> Any:
    """What an encoder makes of absent rows by themselves.

    Where it normalises with the statistics of the batch, one alone has none: two of them have those of any number.
    """
    few = [leaf.shape[0] for leaf in leaves_of(absent) if is_rows(leaf)]
    if set(few) != {1} or not mixes_samples(encoder):
        return encoder(unwrap(absent))
    features = encoder(unwrap(stacked(absent, absent)))
    return mapped(lambda leaf: leaf[:1] if is_rows(leaf) else leaf, features)


def _two(given: Any, batch: int) -> tuple[Any, Any]:
    """Present rows and absent ones."""
    present = mapped(lambda leaf: leaf[:batch] if is_rows(leaf) else leaf, given)
    return present, mapped(lambda leaf: leaf[batch:] if is_rows(leaf) else leaf, given)


def parted_features(name: str, features: Any, batch: int) -> tuple[Any, Any]:
    for leaf in leaves_of(features):
        if is_rows(leaf) and leaf.shape[0] not in (batch + 1, 2 * batch):
            raise ValueError(
                f"Expected encoder `{name}` to return features with the samples in the first dimension, but for "
                f"{batch} samples and one absent row it returned {tuple(leaf.shape)}."
            )
    present, absent = _two(features, batch)
    if not torch.compiler.is_compiling():
        mapped(_note, features, present, absent)
    return present, absent


def _note(whole: Any, present: Any, absent: Any) -> Any:
    if type(whole) is Tensor and whole.dim():
        with_whole(whole, present, absent)
    return whole


def written_leaf(rows: Rows, bit: int, present: Any, absent: Any) -> Any:
    if not is_rows(present):
        return present
    return combine(_at_most(present, rows), _at_most(absent, rows), blocks(bit, rows.subsets), rows.part)


def deferred_leaf(rows: Rows, bit: int, present: Any, absent: Any) -> Any:
    if type(present) is Tensor and type(absent) is Tensor:  # a pass around may watch, and need not see this
        with torch._C.DisableTorchFunction():
            whole = whole_of(present, absent)
            if whole is not None and max(len(present), len(absent)) <= rows.batch:
                return Deferred.of(rows, bit, whole.clone())  # `fuse` may write to it
            few = [_at_most(present, rows), _at_most(absent, rows)] if present.dim() else []
            return Deferred.of(rows, bit, torch.cat(few)) if few else present
    if not is_rows(present):
        return present
    return Deferred.of(rows, bit, torch.cat([_at_most(present, rows), _at_most(absent, rows)]))


def _at_most(leaf: Tensor, rows: Rows) -> Tensor:
    """As many rows as there are samples; a slice of all would still be an operation of the backward."""
    return leaf if leaf.shape[0] <= rows.batch else leaf[: rows.batch]
