"""Another forward for some modules while a network runs."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from agm._module_state.undo import putting_back

__all__ = ["answering"]

_MISSING = object()


def answering(answers: Mapping[nn.Module, Callable[..., Any]], method: str = "forward") -> AbstractContextManager[None]:
    """Replaces a method of modules: an attribute of the instance, so hooks and state dict stay as they are."""
    own = [(module, module.__dict__.get(method, _MISSING)) for module in answers]

    def put_back() -> None:
        for module, value in own:
            if value is _MISSING:
                module.__dict__.pop(method, None)
            else:
                module.__dict__[method] = value

    def replace() -> None:
        for module, answer in answers.items():
            module.__dict__[method] = answer

    return putting_back(put_back, replace)
