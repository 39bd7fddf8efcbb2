"""What two passes come to, beside the first that are one: code may go by its mode where nobody sees it ask."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agm._inputs.absent import is_opaque
from agm._inputs.closeness import close
from agm._inputs.trees import flattened, mapped
from agm._module_state.checkpoints import end_checkpoints
from agm._module_state.eval_mode import evaluation
from agm._module_state.hooks import have_hooks, without_hooks
from agm._module_state.iterators import StandIns
from agm._module_state.modules import submodules
from agm._module_state.traces import Attributes, untraced
from agm._module_state.undo import Contexts, putting_back
from agm._module_state.untouched import untouched
from agm._one_pass.layouts import Unsplit
from agm._one_pass.own_modes import names_mode
from agm._one_pass.synchronised import Exchanges

__all__ = ["Check", "compared", "leaving_nothing"]

Check = Callable[[Any, Any], None]


def compared(
    encoder: nn.Module, given: tuple[Any, Any], rows: Mapping[int, Tensor], network: nn.Module
) -> Check | None:
    """What refuses features of one pass that are not those of two; None: there is nothing to doubt, or no way to tell.

    The two passes leave nothing behind. They are taken where code of the user's names its mode (`self.training`): what
    it hands that to may compare it by `is`, which no stand-in for it can answer.

    Args:
        encoder: in the modes of the joint pass.
        given: its arguments, by position and by name.
        rows: tensor among these, by its id -> the rows that go with it, those of the batch once more among them.
        network: of which it is a part.
    """
    modules = submodules(encoder)
    if not any(map(names_mode, modules)) or Exchanges(modules).norms:
        return None
    attributes = Attributes(submodules(network))
    iterators = StandIns(attributes.kept, attributes.held)
    if have_hooks(modules) or not iterators.are_all:  # as those of fully_shard
        return None
    found = []
    with leaving_nothing(encoder, rows, attributes, iterators):
        for place, mode in (({}, nullcontext()), (rows, evaluation(network))):
            args, kwargs = mapped(partial(_placed, place), given)
            try:
                with mode, untraced(modules, nullcontext):
                    found.append(_detached(encoder.forward(*args, **kwargs)))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # the pass itself will raise it
                end_checkpoints(error)
                return None
    return partial(_check, found)


def leaving_nothing(
    encoder: nn.Module, rows: Mapping[int, Tensor], attributes: Attributes, iterators: StandIns
) -> AbstractContextManager[None]:
    """Inside, passes of an encoder without hooks leave nothing behind.

    Args:
        encoder: which.
        rows: what it is given.
        attributes, iterators: of it and of the modules around.
    """
    return Contexts(
        lambda: untouched(encoder, list(rows.values())),
        lambda: putting_back(attributes.put_back),
        lambda: putting_back(iterators.put_back, iterators.begin),
        # A model that registers hooks once notes it in its attributes: both are as before, without any, or neither.
        lambda: putting_back(partial(without_hooks, submodules(encoder))),
    )


def _placed(rows: Mapping[int, Tensor], leaf: Any) -> Any:
    """A copy of a tensor, or of the rows that go with it."""
    return rows.get(id(leaf), leaf).clone() if isinstance(leaf, Tensor) else leaf


def _detached(features: Any) -> list[Any]:
    leaves, _ = flattened(features, is_leaf=is_opaque)
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _check(found: list[list[Any]], first: Any, rest: Any) -> None:
    for expected, features in zip(found, (first, rest), strict=True):
        for one, other in zip(expected, _detached(features), strict=False):
            if isinstance(one, Tensor) and isinstance(other, Tensor) and not _are_alike(one, other):
                raise Unsplit("one pass comes to something else than two, as where code goes by `training is True`")


def _are_alike(one: Tensor, other: Tensor) -> bool:
    if close(one, other):
        return True
    halves = one.dtype == torch.float32 and torch.is_autocast_enabled(one.device.type)
    return halves and close(one.bfloat16(), other.bfloat16())
