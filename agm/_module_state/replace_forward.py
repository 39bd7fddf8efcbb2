"""Another forward for some modules while a network runs."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from agm._module_state.undo import putting_back

__all__ = ["answering", "called_function"]

_MISSING = object()
_COMPILED = "_compiled_call_impl"  # where `module.compile()` leaves what calls of the module go to


def called_function(module: nn.Module, method: str = "forward") -> Callable[..., Any]:
    """What calls of the module go to, and what `answering` replaces.

    After `module.compile()` that is its compiled call, with its hooks: a method in it that were replaced would be
    compiled anew, together with what took its place.
    """
    function: Callable[..., Any] = getattr(module, _place(module, method))
    return function


def answering(answers: Mapping[nn.Module, Callable[..., Any]], method: str = "forward") -> AbstractContextManager[None]:
    """Replaces a method of modules: an attribute of the instance, so hooks and state dict stay as they are."""
    places = {module: _place(module, method) for module in answers}
    own = [(module, place, module.__dict__.get(place, _MISSING)) for module, place in places.items()]

    def put_back() -> None:
        for module, place, value in own:
            if value is _MISSING:
                module.__dict__.pop(place, None)
            else:
                module.__dict__[place] = value

    def replace() -> None:
        for module, answer in answers.items():
            module.__dict__[places[module]] = answer

    return putting_back(put_back, replace)


def _place(module: nn.Module, method: str) -> str:
    """The attribute that is called. A graph around the module has its forward in it, and not its compiled call."""
    compiled = method == "forward" and module._compiled_call_impl is not None
    return _COMPILED if compiled and not torch.compiler.is_compiling() else method
