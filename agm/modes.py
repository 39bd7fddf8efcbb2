"""The evaluation mode of the masked passes, which leaves no trace on the network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from agm.checkpointing import without_checkpointing

__all__ = ["evaluation", "mixes_samples", "mode_dependent_layers"]

_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Eval mode for a forward pass with gradients; every submodule's mode is as before afterwards, also on errors.

    The flags are set directly: a network that overrides `train()` (to keep a frozen part in eval, to merge
    adapters) is left alone. Buffers that training passes write to are copied, since the backward of this pass reads
    them: otherwise two forwards could not come before one backward. Recurrent layers stay in training mode without
    dropout, which is the same: cuDNN refuses a backward through them in eval mode. Activation checkpointing is off.
    """
    training = [module for module in network.modules() if module.training]
    # Not subclasses, which may read their mode for more than dropout.
    recurrent = [(m, m.dropout) for m in training if isinstance(m, nn.RNNBase) and type(m) in _RECURRENT]
    changed = [m for m in training if type(m) not in _RECURRENT]
    written = _written_buffers(changed) if torch.is_grad_enabled() else []
    try:
        for module in changed:
            module.training = False
        for rnn, _ in recurrent:
            rnn.dropout = 0.0
        if written:
            with torch.no_grad():
                copies = torch._foreach_mul([buffer for _, _, buffer in written], 1.0)
            for (module, name, _), copy in zip(written, copies, strict=True):
                module._buffers[name] = copy
        with without_checkpointing():
            yield
    finally:
        for module, name, buffer in written:
            module._buffers[name] = buffer
        for module in changed:
            module.training = True
        for rnn, dropout in recurrent:
            rnn.dropout = dropout


def _written_buffers(modules: list[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """Floating buffers that are written in place, as running statistics are.

    Norms write to theirs without autograd's knowledge: their version stays, so what reads them is not even refused.
    """
    return [
        (module, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point() and (isinstance(module, _NormBase) or _is_written(buffer))
    ]


def _is_written(buffer: Tensor) -> bool:
    # A graph does not know it; there copies cost little.
    return torch.compiler.is_compiling() or (not buffer.is_inference() and buffer._version > 0)


def mixes_samples(network: nn.Module) -> list[str]:
    """Names of layers that normalise with the statistics of the batch in eval mode too."""
    return [
        name or type(module).__name__
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]


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
