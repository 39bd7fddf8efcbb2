"""Activation checkpointing in the masked passes: left out."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import checkpoint

__all__ = ["is_checkpointing", "without_checkpointing"]


def is_checkpointing() -> bool:
    """Whether a reentrant checkpoint is running its function, for which it switches gradients off."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not _REENTRANT:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


_REENTRANT = checkpoint.CheckpointFunction.forward.__code__


class _Direct:
    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


# What `torch.utils.checkpoint.checkpoint` looks up when it is called, with and without `use_reentrant`.
_REPLACEMENTS = {"CheckpointFunction": _Direct, "_checkpoint_without_reentrant_generator": _nothing}


@contextmanager
def without_checkpointing(reentrant_alone: bool = False) -> Iterator[None]:
    """Checkpointed functions are called plainly; or only those with `use_reentrant`, which `autograd.grad` refuses.

    Their recomputation would run in the backward, when the network's modes and forwards are what they were again:
    it would silently compute other activations than the masked pass had.
    """
    if torch.compiler.is_compiling():
        yield
        return
    names = ["CheckpointFunction"] if reentrant_alone else list(_REPLACEMENTS)
    own = {name: getattr(checkpoint, name) for name in names if hasattr(checkpoint, name)}
    try:
        for name in own:
            setattr(checkpoint, name, _REPLACEMENTS[name])
        yield
    finally:
        for name, value in own.items():
            setattr(checkpoint, name, value)
