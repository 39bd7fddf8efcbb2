"""Modules that torch.compile has been applied to."""

from collections.abc import Iterable

from torch import nn

__all__ = ["compiled_part", "is_compiled"]


def is_compiled(module: nn.Module) -> bool:
    """Whether calls go to a compiled forward: `torch.compile(module)` or `module.compile()`."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def compiled_part(network: nn.Module, encoders: Iterable[nn.Module]) -> str | None:
    """The name of a compiled module inside the network that is no part of an encoder; None: there is none."""
    inside = {module for encoder in encoders for module in encoder.modules()}
    parts = (name for name, module in network.named_modules() if module not in inside and is_compiled(module))
    return next((name for name in parts if name not in ("", "_orig_mod")), None)
