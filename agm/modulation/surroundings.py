"""Where no step of the modulation can run: a recomputed forward, forward mode, the transforms of `torch.func`."""

import torch
from torch.autograd import forward_ad

__all__ = ["check_surroundings"]


def check_surroundings() -> None:
    """That the step that begins is one of the training loop's own.

    Raises:
        RuntimeError: a backward is running, so that the step would be a recomputed one, or a function transform is.
    """
    if torch.compiler.is_compiling():
        return
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "Expected a step of the modulation to run in the forward, but a backward is running: inside "
            "torch.utils.checkpoint the step would be taken twice, the second time with other running scores. "
            "Checkpoint parts of the network instead, or use agm.AGM(..., checkpoint=True)."
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "Expected a step of the modulation to run outside torch.func.grad, vjp, jvp and vmap, which cannot write "
            "the running scores, but got one inside. Use loss.backward() or torch.autograd.grad; "
            "torch.func.functional_call works, and so does everything in eval mode."
        )
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            "Expected a step of the modulation to run outside torch.autograd.forward_ad.dual_level, but got one inside:"
            " the modulated gradient is one of a backward. Use loss.backward() or torch.autograd.grad; everything in "
            "eval mode works."
        )
