"""Modules that torch.compile has been applied to."""

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, TypeVar

from torch import nn
from torch._C._dynamo import eval_frame

__all__ = ["compiled_part", "in_one_piece", "is_compiled"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def in_one_piece(function: _Function) -> _Function:
    """A function that is a part of its caller's graph or, where that is broken inside, runs in eager mode as a whole.

    Otherwise each function that it calls would be compiled by itself, some of them knowing that and some not.
    """
    assert isinstance(function, FunctionType)
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    return function


def is_compiled(module: nn.Module) -> bool:
    """Whether calls go to a compiled forward: `torch.compile(module)`, `module.compile()`, or of `module.forward`."""
    if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
        return True
    own = module.__dict__.get("forward")
    return own is not None and hasattr(own, "_torchdynamo_orig_callable")


def compiled_part(network: nn.Module, encoders: Iterable[nn.Module]) -> str | None:
    """The name of a compiled module inside the network that is no part of an encoder; None: there is none."""
    inside = {module for encoder in encoders for module in encoder.modules()}
    parts = (name for name, module in network.named_modules() if module not in inside and is_compiled(module))
    return next((name for name in parts if name not in ("", "_orig_mod")), None)
