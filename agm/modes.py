"""The evaluation mode of the masked passes, which leaves no trace on the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["evaluation", "mode_dependent_layers"]


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Eval mode for a forward pass with gradients; every submodule's mode is as before afterwards, also on errors.

    The flags are set directly: a network that overrides `train()` (to keep a frozen part in eval, to merge
    adapters) is left alone. Running statistics that the next training pass will write to are copied, since
    the backward of this pass reads them: otherwise two forwards could not come before one backward. Recurrent layers
    stay in training mode without dropout, which is the same: cuDNN refuses a backward through them in eval mode.
    """
    training = [module for module in network.modules() if module.training]
    changed = [module for module in training if not isinstance(module, nn.RNNBase)]
    recurrent = [(module, module.dropout) for module in training if isinstance(module, nn.RNNBase)]
    norms = [m for m in changed if isinstance(m, _NormBase) and m.running_mean is not None]
    own: list[tuple[_NormBase, str, Any]] = [
        (norm, name, norm._buffers[name]) for norm in norms for name in ("running_mean", "running_var")
    ]
    try:
        for module in changed:
            module.training = False
        for rnn, _ in recurrent:
            rnn.dropout = 0.0
        if own and torch.is_grad_enabled():
            with torch.no_grad():
                copies = torch._foreach_mul([buffer for _, _, buffer in own], 1.0)
            for (norm, name, _), copy in zip(own, copies, strict=True):
                norm._buffers[name] = copy
        yield
    finally:
        for norm, name, buffer in own:
            norm._buffers[name] = buffer
        for module in changed:
            module.training = True
        for rnn, dropout in recurrent:
            rnn.dropout = dropout


def mode_dependent_layers(network: nn.Module) -> list[str]:
    """Names of torch's own layers in training mode that compute something else in eval mode.

    A layer that cannot be known (a user's own that reads `self.training`) is not among them.
    """
    return [name or type(m).__name__ for name, m in network.named_modules() if m.training and _depends_on_mode(m)]


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, _NormBase):
        return bool(module.track_running_stats)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return bool(module.p > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout) and module.num_layers > 1
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    return isinstance(module, (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d))
