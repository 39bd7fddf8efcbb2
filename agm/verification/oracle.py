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
from agm._inputs.shared_memory import SharedMemory
from agm._module_state.modules import submodules
from agm._module_state.replace_forward import answering, called_function
from agm._module_state.structure import Structure
from agm._module_state.traces import untraced
from agm._module_state.written import Place, StandIn, merged, stand_ins
from agm._passes.absent_features import constant
from agm._passes.masked_passes import MaskedPasses

__all__ = ["eval_mode", "separate_passes"]


def separate_passes(
    passes: MaskedPasses,
    arguments: Arguments,
    absent: Mapping[str, Any],
    subsets: Sequence[int],
    tracks: bool = True,
    after_joint: Callable[[], None] = lambda: None,
) -> Tensor:
    """What the masked logits must equal: (2**M - 1, B, ..., C), by as many passes of the whole network.

    There is a row for each of `subsets`, and a last one for the joint pass.

    The joint pass runs first, in the network's mode. Each other subset then has a pass of its own in eval mode, on B
    rows. In "shared" mode the encoders of present modalities answer there with what they returned in the joint pass:
    where they depend on the mode, that is what the mode means. An encoder that returned memory that it was given, to
    which forward has then written, returns what it is given there, too.

    After the joint pass the generators are seeded anew, so that a network which draws random numbers in eval mode draws
    others than in `passes`. This is left to the caller to put back.

    Args:
        passes: whose network, absent inputs and encoders are meant.
        arguments: of forward.
        absent: modality -> its absent input.
        subsets: bitmasks of the proper subsets.
        tracks: whether inputs have a gradient.
        after_joint: called between the joint pass and the others.
    """
    batch = batch_size(arguments.inputs)
    absent = {
        name: pytree.tree_map(lambda leaf: _as_input(tile(leaf, batch), tracks) if is_rows(leaf) else leaf, x)
        for name, x in absent.items()
    }
    encoders = _encoders(passes)
    tensors = Structure(passes.network).tensors
    tensors.note()
    with ExitStack() as stack:
        if passes.shared:
            for encoder in encoders:
                stack.enter_context(answering({encoder.owner: encoder.recording()}, encoder.method))
        joint = passes.outputs.logits(passes.binding.call(_copied(arguments)))
    after_joint()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    written = tensors.written()
    masked = []
    for subset in subsets:
        present = {name for bit, name in enumerate(passes.modalities) if subset >> bit & 1}
        inputs = {name: x if name in present else absent[name] for name, x in arguments.inputs.items()}
        with ExitStack() as stack:
            stack.enter_context(eval_mode(passes.network, stand_ins(_own_memory(passes.network, written))))
            for encoder in encoders:
                answer = encoder.answering(present, passes.shared, passes.options.absent_gradient)
                stack.enter_context(answering({encoder.owner: answer}, encoder.method))
            output = passes.binding.call(_copied(arguments._replace(inputs=inputs)))
            masked.append(passes.outputs.logits(output))
    return torch.stack([*(logits.to(joint.dtype) for logits in masked), joint])


class _Encoder:
    """An encoder in the passes of the definition.

    Args:
        owner, method: what is called.
        order: the modality of each of its calls; the one of all, if it encodes one.
    """

    def __init__(self, owner: nn.Module, method: str, order: Sequence[str]) -> None:
        self.owner, self.method, self.order = owner, method, order
        self.outputs: list[Any] = []
        self.memory = SharedMemory()

    def recording(self) -> Callable[..., Any]:
        """Its function, noting what it returns."""
        function = called_function(self.owner, self.method)

        def recording(*args: Any, **kwargs: Any) -> Any:
            output, kept = doubled(function(*args, **kwargs))
            self.memory.note((args, kwargs), output)
            self.outputs.append(kept)
            return output

        return recording

    def answering(self, present: set[str], shared: bool, gradient: bool) -> Callable[..., Any]:
        """Its function in the pass of a subset."""
        function = called_function(self.owner, self.method)
        calls = iter(range(10**6))

        def answer(*args: Any, **kwargs: Any) -> Any:
            call = next(calls)
            name = self.order[call % len(self.order)]
            if shared and name in present and not self.memory.inputs_written():
                return copied(self.outputs[call])
            output = function(*args, **kwargs)
            return output if gradient or name in present else constant(output)

        return answer


def _encoders(passes: MaskedPasses) -> list[_Encoder]:
    """Those that the definition has to know: in shared mode, and where absent rows have no gradient."""
    if not passes.shared and passes.options.absent_gradient:
        return []
    return [_Encoder(*one) for one in passes.encoder_calls()]


def _as_input(rows: Tensor, tracks: bool) -> Tensor:
    """Rows with a gradient if they can have one: a reentrant checkpoint gives its parameters none without."""
    return rows if rows.requires_grad or not tracks or not rows.is_floating_point() else rows.clone().requires_grad_()


@contextmanager
def eval_mode(network: nn.Module, copies: Sequence[StandIn] = ()) -> Iterator[None]:
    """Every module in eval mode, for a pass that leaves no trace, with copies in the place of some tensors.

    Recurrent layers stay in training mode without dropout, since cuDNN refuses their backward in eval mode.
    """
    modes = [(module, module.training) for module in submodules(network)]
    recurrent = [module for module, _ in modes if type(module) in (nn.RNN, nn.LSTM, nn.GRU)]
    dropouts: list[float] = [module.dropout for module in recurrent]  # type: ignore[misc]
    try:
        for module, _ in modes:
            module.training = module.training and module in recurrent
        for module in recurrent:
            module.dropout = 0.0  # type: ignore[assignment]
        for one in copies:
            one.begin()
        with untraced([module for module, _ in modes], lambda: eval_mode(network, copies), copies):
            yield
    finally:
        for one in copies:
            one.put_back()
        for module, mode in modes:
            module.training = mode
        for module, dropout in zip(recurrent, dropouts, strict=True):
            module.dropout = dropout  # type: ignore[assignment]


def _copied(arguments: Arguments) -> Arguments:
    """The network may write to what it is given."""
    inputs, others, rest = copied(tuple(arguments[:3]))
    return Arguments(inputs, others, rest, arguments.placed)


def _own_memory(network: nn.Module, written: Sequence[Place]) -> list[Place]:
    """What each pass has of its own, since the backward of earlier ones reads what they had: buffers, and `written`."""
    buffers = [(m._buffers, name) for m in network.modules() for name, x in m._buffers.items() if x is not None]
    return merged(buffers, written)
