"""One thread at a time in a network: a training step changes the modes of its modules while it runs."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["OWN", "guarded", "lock_of", "of_one_thread", "own_of", "unguarded"]

_locks: "WeakKeyDictionary[nn.Module, threading.Lock]" = WeakKeyDictionary()

_GUARDS, OWN = "_agm_guards", "_agm_own"
_WAYS_OUT = "Give the other thread a copy.deepcopy of it, or let it wait with a lock of your own."


def lock_of(network: nn.Module) -> threading.Lock:
    """Held while a call of a model runs: the lock of its network, the same for all models of that.

    Raises:
        RuntimeError: another thread is inside.
    """
    # No lock of its own around this: `setdefault` is one operation, and an interrupt could leave a lock held for good.
    lock = _locks.setdefault(network, threading.Lock())
    if lock.locked():
        raise RuntimeError(
            "Expected one thread at a time to call an agm.AGM, or several of one network, but another one is inside: a "
            f"training step changes the modes of the network's modules while it runs. {_WAYS_OUT}"
        )
    return lock


def guarded(function: Callable[..., Any], own: object = None) -> Callable[..., Any]:
    """What stands in for a forward during a step, for the thread that takes the step; others get an error.

    Args:
        function: what this thread calls.
        own: what the module had in its place, see `own_of`.

    Raises:
        RuntimeError: when called by another thread.
    """
    call: Any = partial(of_one_thread, threading.get_ident(), function)
    setattr(call, _GUARDS, function)
    setattr(call, OWN, own)
    return call  # type: ignore[no-any-return]


def of_one_thread(owner: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Calls a function for the thread `owner`.

    Raises:
        RuntimeError: another thread is here.
    """
    if threading.get_ident() != owner:
        raise RuntimeError(
            "Expected one thread at a time in a network that trains, but another one is in a training step of "
            f"agm.AGM. {_WAYS_OUT}"
        )
    return function(*args, **kwargs)


def own_of(function: Any) -> Any:
    """What a module had, None for nothing, where `guarded` has put this; else this itself."""
    return getattr(function, OWN, function)


def unguarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `guarded` was given, where it has made this."""
    of_guard: Callable[..., Any] = getattr(function, _GUARDS, function)
    return of_guard
