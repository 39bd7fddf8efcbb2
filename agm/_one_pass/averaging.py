"""Norms whose running statistics are averages of all batches (`momentum=None`): nothing waits for their counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from agm._module_state.replace_forward import answering

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = ["averaging_on_device"]


def averaging_on_device(modules: Sequence[nn.Module], split: RowSplit) -> AbstractContextManager[None]:
    """Inside, batch norms with averages of all batches hand their counter to the pass, where torch's read it.

    Args:
        modules: of the encoder, which runs inside.
        split: the pass that follows its rows.
    """
    norms = [module for module in modules if _averages(module)]
    if not norms:
        return nullcontext()
    return answering({norm: partial(_told, split, norm, norm.forward) for norm in norms})


def _averages(module: nn.Module) -> bool:
    """Whether it is a norm of torch's, as it is, that would read its counter."""
    if not isinstance(module, _BatchNorm) or module.momentum is not None or not module.track_running_stats:
        return False
    if type(module).forward is not _BatchNorm.forward or "forward" in module.__dict__:
        return False
    return module.training and module.running_mean is not None and module.num_batches_tracked is not None


def _told(split: RowSplit, norm: Any, forward: Callable[..., Any], input: Tensor) -> Any:
    """What the norm's forward does, but for the reading."""
    training = norm.__dict__["training"]
    if training is False:
        return forward(input)
    norm._check_input_dim(input)
    norm.num_batches_tracked.add_(1)  # which the pass does at its end
    split.batches = norm.num_batches_tracked
    try:
        return F.batch_norm(input, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, 0.0, norm.eps)
    finally:
        split.batches = None
