"""Hooks that are called for the rows of masked passes too, in words: nobody knows whether they should be."""

from collections.abc import Iterator

from torch import nn

from agm._module_state.hooks import BACKWARD_KINDS, KINDS
from agm._one_pass.choice import GLOBAL_HOOKS

__all__ = ["hook_notes"]


def hook_notes(network: nn.Module, on_tensors: bool) -> Iterator[str]:
    """Sentences on the hooks that a network has.

    Args:
        network: its modules may have some.
        on_tensors: whether its forward gives tensors hooks.
    """
    if forward := _hooked(network, KINDS):
        yield f"Forward hooks of {forward} that return something or write to what they get run for masked rows too."
    if backward := _hooked(network, BACKWARD_KINDS):
        yield f"Backward hooks of {backward} are called with the gradients of masked rows too."
    if any(GLOBAL_HOOKS):
        yield "Hooks on all modules (register_module_forward_hook and its like) are called for masked rows too."
    if on_tensors:
        yield "Forward gives tensors hooks (register_hook), which are called with the gradients of masked rows too."


def _hooked(network: nn.Module, kinds: tuple[str, ...]) -> str:
    names = [
        f"`{name}`" if name else "the network"
        for name, module in network.named_modules()
        if any(vars(module)[kind] for kind in kinds)
    ]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
