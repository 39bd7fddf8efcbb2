"""Activation checkpoints of the network's own inside a masked pass: kept from recomputing in the wrong modes.

What a checkpoint recomputes runs in the backward, when the network is in the modes of training again. A non-reentrant
checkpoint therefore keeps its activations here; a reentrant one, which can do nothing but recompute, does so in the
modes and with the buffers of the masked pass. Both are found from inside the pass, by what they leave on this thread:
nothing of torch is replaced.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from torch.utils import checkpoint

__all__ = ["CheckpointedRegions", "check_not_reentrant", "end_checkpoints", "packing_hook", "reentrant_checkpoint"]

# Since torch 2.14 `checkpoint` leaves it to another function.
_PLAIN = inspect.unwrap(getattr(checkpoint, "_checkpoint_impl", checkpoint.checkpoint)).__code__
_REENTRANT = checkpoint.CheckpointFunction.forward.__code__
_OWN = "_checkpoint_hook.__init__."  # the qualified name of its hooks begins so


def _frame_of(code: object) -> FrameType | None:
    """The innermost frame on the stack that runs some code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def reentrant_checkpoint() -> Any:
    """The context of the reentrant checkpoint that is running its function, for which it switches gradients off."""
    frame = None if torch.is_grad_enabled() else _frame_of(_REENTRANT)
    return None if frame is None else frame.f_locals["ctx"]


def check_not_reentrant(encoder: object) -> None:
    """That an encoder whose features are used twice is not called by a reentrant checkpoint.

    Raises:
        ValueError: it is; its features would come without their gradient.
    """
    if not torch.is_grad_enabled() and reentrant_checkpoint() is not None:
        raise ValueError(
            f"Expected {encoder} not to be called by a reentrant checkpoint, whose output has no gradient that the "
            "masked passes could use. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False), or checkpoint "
            "parts of the encoder."
        )


def packing_hook() -> Any:
    """What packs the tensors that autograd saves on this thread; None: nothing does."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]


def end_checkpoints(error: BaseException | None) -> None:
    """Ends the checkpoints that an error has left.

    torch 2.11 leaves that to the end of the traceback: until then their hooks pack what autograd saves elsewhere, and
    then whatever hooks are the last on the thread are removed.
    """
    traceback = None if error is None else error.__traceback__
    regions = []
    while traceback is not None:
        if traceback.tb_frame.f_code is _PLAIN:
            regions.append(traceback.tb_frame.f_locals.get("gen"))  # None: raised before it had begun
        traceback = traceback.tb_next
    for region in reversed(regions):
        if region is not None:
            region.close()


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class CheckpointedRegions:
    """The checkpoints that are open in a masked pass.

    Args:
        as_here: enters the modes and buffers of the masked pass, for what is recomputed later.

    Attributes:
        open: what they have left on this thread. Where nothing is open, no hooks pack what autograd saves, and
            gradients are on, there is nothing to heed.
    """

    def __init__(self, as_here: Callable[[], AbstractContextManager[object]]) -> None:
        self._as_here = as_here
        # Of checkpoints around the pass, which recompute all of it.
        self._outside = (packing_hook(), reentrant_checkpoint())
        self.open: list[Any] = []  # generators of torch's that end with their regions

    def settle(self) -> None:
        """Called before every function of the pass: heeds checkpoints that have begun or ended since."""
        while self.open and self.open[-1].gi_frame is None:
            self._leave()
        pack, context = packing_hook(), reentrant_checkpoint()
        if pack is not self._outside[0] and getattr(pack, "__qualname__", "").startswith(_OWN):
            self._keep_activations(pack)
        if context is not None and context is not self._outside[1]:
            function = getattr(context, "run_function", None)  # None: the checkpoint still looks at its arguments
            if function is not None and not isinstance(function, _AsThere):
                context.run_function = _AsThere(function, self._as_here)

    def _keep_activations(self, pack: Any) -> None:
        frame = _frame_of(_PLAIN)
        if frame is not None:
            # Above the checkpoint's own pair, which its end takes for its own and removes.
            torch._C._autograd._push_saved_tensors_default_hooks(_kept, _kept)
            self.open.append(frame.f_locals["gen"])
            return
        cells = dict(zip(pack.__code__.co_freevars, pack.__closure__, strict=True))  # begun by a hook of a module
        region = cells["frame"].cell_contents
        if not isinstance(region.recompute_fn, _AsThere):
            region.recompute_fn = _AsThere(region.recompute_fn, self._as_here)

    def _leave(self) -> None:
        self.open.pop()
        torch._C._autograd._pop_saved_tensors_default_hooks()

    def close(self) -> None:
        """Leaves this thread's hooks as they were before the pass, also after an error inside a checkpoint."""
        while self.open:
            if self.open[-1].gi_frame is not None:
                self.open[-1].close()  # removes one pair
            self._leave()


class _AsThere:
    """A checkpointed function, recomputed as the masked pass had it."""

    def __init__(self, function: Callable[..., Any], as_there: Callable[[], AbstractContextManager[object]]) -> None:
        self.function = function
        self.as_there = as_there

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.as_there():
            return self.function(*args, **kwargs)
