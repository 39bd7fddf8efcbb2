"""Forward hooks of a network's modules: those that only observe see the joint pass alone."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._module_state.undo import putting_back

__all__ = ["ALL_KINDS", "BACKWARD_KINDS", "KINDS", "ForwardHooks", "have_hooks", "hooked", "replaced", "without_hooks"]

KINDS = ("_forward_pre_hooks", "_forward_hooks")
BACKWARD_KINDS = ("_backward_pre_hooks", "_backward_hooks")
ALL_KINDS = (*KINDS, *BACKWARD_KINDS)


# Models of these packages make their own outputs of what hooks of theirs capture.
_CAPTURING = ("transformers.",)


def _is_of_the_network(hook: Callable[..., Any]) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith(_CAPTURING)


def hooked(modules: Sequence[nn.Module], kinds: Sequence[str]) -> list[tuple[nn.Module, str]]:
    """Modules that have hooks, and of which of these kinds."""
    return [(module, kind) for module in modules for kind in kinds if module.__dict__[kind]]


def replaced(
    own: Sequence[tuple[nn.Module, str]], hooks: Callable[[nn.Module, str], "OrderedDict[int, Any]"]
) -> AbstractContextManager[None]:
    """Modules have other hooks inside.

    Args:
        own: modules, and the kind of hooks.
        hooks: makes those that they have instead.
    """
    before = [(module, kind, module.__dict__[kind]) for module, kind in own]

    def put_back() -> None:
        for module, kind, mine in before:
            module.__dict__[kind] = mine

    def replace() -> None:
        for module, kind, _ in before:
            module.__dict__[kind] = hooks(module, kind)

    return putting_back(put_back, replace, True)


class ForwardHooks:
    """The hooks of modules, and which of them act: return something, or write to what they are given.

    A hook that did nothing of the kind in any call of the joint pass is taken for an observer. One that was not called
    there is not.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._hooked = hooked(modules, KINDS)
        self._observers: set[tuple[int, str, int]] = set()
        self._acting: set[tuple[int, str, int]] = set()

    @property
    def are_there(self) -> bool:
        """Whether there are any."""
        return len(self._hooked) > 0

    @property
    def act(self) -> bool:
        """Whether one that is not the network's own is no observer."""
        return any(
            not _is_of_the_network(hook) for module, kind in self._hooked for hook in self._left(module, kind).values()
        )

    def watched(self) -> AbstractContextManager[None]:
        """Finds out, while the joint pass runs inside, what each hook does."""
        return self._replaced(self._watch)

    def acting_alone(self) -> AbstractContextManager[None]:
        """Leaves out the observers inside."""
        return self._replaced(self._left)

    def _replaced(self, hooks: Callable[[nn.Module, str], "OrderedDict[int, Any]"]) -> AbstractContextManager[None]:
        return replaced(self._hooked, hooks)

    def _watch(self, module: nn.Module, kind: str) -> "OrderedDict[int, Any]":
        own = module.__dict__[kind]
        return OrderedDict((key, self._watcher((id(module), kind, key), hook)) for key, hook in own.items())

    def _watcher(self, key: tuple[int, str, int], hook: Callable[..., Any]) -> Callable[..., Any]:
        def watcher(*args: Any, **kwargs: Any) -> Any:
            tensors = [leaf for leaf in pytree.tree_leaves((args[1:], kwargs)) if isinstance(leaf, Tensor)]
            before = [None if tensor.is_inference() else tensor._version for tensor in tensors]
            result = hook(*args, **kwargs)
            after = [None if tensor.is_inference() else tensor._version for tensor in tensors]
            observes = result is None and before == after and not _is_of_the_network(hook)
            (self._observers if observes else self._acting).add(key)
            return result

        return watcher

    def _left(self, module: nn.Module, kind: str) -> "OrderedDict[int, Any]":
        own = module.__dict__[kind]
        observers = self._observers - self._acting
        return OrderedDict((key, hook) for key, hook in own.items() if (id(module), kind, key) not in observers)


def have_hooks(modules: Sequence[nn.Module]) -> bool:
    """Whether one has a hook on its forward."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def without_hooks(modules: Sequence[nn.Module]) -> None:
    """Takes all hooks on forwards away."""
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
