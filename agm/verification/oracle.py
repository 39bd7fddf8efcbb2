"""The masked logits by their definition: the whole network once for every subset, one after another."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.absent import batch_size, is_rows
from agm._inputs.arguments import Arguments
from agm._inputs.rows import copied, doubled, tile
from agm._module_state.replace_forward import answering
from agm._module_state.traces import untraced
from agm._passes.masked_logits import MaskedPasses

__all__ = ["eval_mode", "separate_passes"]


def separate_passes(
    passes: MaskedPasses, arguments: Arguments, absent: Mapping[str, Any], subsets: Sequence[int]
) -> Tensor:
    """What the masked logits must equal: (2**M - 1, B, ..., C), by as many passes of the whole network.

    There is a row for each of `subsets`, and a last one for the joint pass.

    The joint pass runs first, in the network's mode. Each other subset then has a pass of its own in eval mode, on B
    rows. In "shared" mode the encoders of present modalities answer there with what they returned in the joint pass:
    where they depend on the mode, that is what the mode means.

    After the joint pass the generators are seeded anew, so that a network which draws random numbers in eval mode draws
    others than in `passes`. This, and other buffers than it found, is left to the caller to put back.
    """
    batch = batch_size(arguments.inputs)
    absent = {
        name: pytree.tree_map(lambda leaf: _as_input(tile(leaf, batch)) if is_rows(leaf) else leaf, x)
        for name, x in absent.items()
    }
    encoders = passes.encoders() if passes.shared else {}
    answers: dict[str, list[Any]] = {name: [] for name in encoders}
    with ExitStack() as stack:
        if encoders:
            recorders = {encoder: _recording(encoder, answers[name]) for name, encoder in encoders.items()}
            stack.enter_context(answering(recorders))
        joint = passes.outputs.logits(passes.binding.call(_copied(arguments)))
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    masked = []
    for subset in subsets:
        present = {name for bit, name in enumerate(passes.modalities) if subset >> bit & 1}
        inputs = {name: x if name in present else absent[name] for name, x in arguments.inputs.items()}
        replies = {encoder: _replying(answers[name]) for name, encoder in encoders.items() if name in present}
        _renew_buffers(passes.network)
        with eval_mode(passes.network), answering(replies):
            output = passes.binding.call(_copied(arguments._replace(inputs=inputs)))
            masked.append(passes.outputs.logits(output))
    return torch.stack([*(logits.to(joint.dtype) for logits in masked), joint])


def _as_input(rows: Tensor) -> Tensor:
    """Rows with a gradient if they can have one: a reentrant checkpoint gives its parameters none without."""
    return rows if rows.requires_grad or not rows.is_floating_point() else rows.clone().requires_grad_()


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode, for a pass that leaves no trace.

    Recurrent layers stay in training mode without dropout, since cuDNN refuses their backward in eval mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    recurrent = [module for module, _ in modes if type(module) in (nn.RNN, nn.LSTM, nn.GRU)]
    dropouts: list[float] = [module.dropout for module in recurrent]  # type: ignore[misc]
    try:
        for module, _ in modes:
            module.training = module.training and module in recurrent
        for module in recurrent:
            module.dropout = 0.0  # type: ignore[assignment]
        with untraced([module for module, _ in modes], lambda: eval_mode(network)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, dropout in zip(recurrent, dropouts, strict=True):
            module.dropout = dropout  # type: ignore[assignment]


def _copied(arguments: Arguments) -> Arguments:
    """The network may write to what it is given."""
    inputs, others, rest = copied(tuple(arguments[:3]))
    return Arguments(inputs, others, rest, arguments.placed)


def _recording(encoder: nn.Module, answers: list[Any]) -> Callable[..., Any]:
    forward = encoder.forward

    def recording(*args: Any, **kwargs: Any) -> Any:
        output, kept = doubled(forward(*args, **kwargs))
        answers.append(kept)
        return output

    return recording


def _replying(answers: list[Any]) -> Callable[..., Any]:
    pending = iter(answers)
    return lambda *args, **kwargs: copied(next(pending))


def _renew_buffers(network: nn.Module) -> None:
    """The backward of earlier passes reads the buffers that they had, whatever the next one writes to its own."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()
