"""Modules that torch.compile has been applied to."""

from collections.abc import Iterable

from torch import nn

__all__ = ["compiled_part", "is_compiled"]


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
