"""Another forward for some modules while a network runs."""

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from agm._module_state.hooks import ALL_KINDS
from agm._module_state.threads import guarded, of_one_thread, unguarded
from agm._module_state.undo import opened, putting_back

__all__ = ["KeptToThread", "answering", "answering_methods", "called_function", "make_answerable"]

_MISSING = object()
_COPIER = "__deepcopy__"
_COMPILED = "_compiled_call_impl"  # where `module.compile()` leaves what calls of the module go to
_HOOKS = "_forward_pre_hooks"
# Before torch 2.13 a graph has the forward of a module's class in it, whatever the module has of its own, if there are
# no hooks (pytorch/pytorch#167400); and it takes nothing out of a module's dictionary.
_CALLS_CLASS = torch.__version__ < "2.13"


def _hook(module: nn.Module, args: Any) -> None:
    """Does nothing, but for what calls of a module that has hooks go to."""


def called_function(module: nn.Module, method: str = "forward") -> Callable[..., Any]:
    """What calls of the module go to, and what `answering` replaces.

    After `module.compile()` that is its compiled call, with its hooks: a method in it that were replaced would be
    compiled anew, together with what took its place.
    """
    function: Callable[..., Any] = getattr(module, _place(module, method))
    return function if torch.compiler.is_compiling() else unguarded(function)


def make_answerable(module: nn.Module) -> None:
    """Of a module whose forward a graph will replace, so that its first run adds no attribute and compiles no other."""
    if _CALLS_CLASS and not torch.compiler.is_compiling():
        module.__dict__.setdefault(_COMPILED, None)


def answering(answers: Mapping[nn.Module, Callable[..., Any]], method: str = "forward") -> AbstractContextManager[None]:
    """Replaces a method of modules: an attribute of the instance, so hooks and state dict stay as they are."""
    return answering_methods([(module, method, answer) for module, answer in answers.items()])


def answering_methods(
    answers: Iterable[tuple[nn.Module, str, Callable[..., Any]]], eager: bool = False
) -> AbstractContextManager[None]:
    """As `answering`, of a method for each module; `eager` where nothing is compiled, as far as the caller knows."""
    answers = [*answers]
    own: list[tuple[dict[str, Any], str, Any, Any]] = []
    copied: list[tuple[dict[str, Any], Any]] = []
    for module, method, answer in answers:
        place = _place(module, method)
        if _CALLS_CLASS and place == "forward" and torch.compiler.is_compiling() and not _has_hooks(module):
            own.append((module.__dict__, _COMPILED, answer, module._compiled_call_impl))
            own.append((module.__dict__, _HOOKS, {0: _hook}, module._forward_pre_hooks))
        else:
            own.append((module.__dict__, place, answer, module.__dict__.get(place, _MISSING)))

    def put_back() -> None:
        for attributes, place, _, value in own:
            if value is _MISSING:
                attributes.pop(place, None)
            else:
                attributes[place] = value
        for attributes, copier in copied:
            if copier is None:
                attributes.pop(_COPIER, None)
            else:
                attributes[_COPIER] = copier

    def replace() -> None:
        is_compiling = not eager and torch.compiler.is_compiling()
        alone = is_compiling or threading.active_count() == 1
        for attributes, place, answer, value in own:
            attributes[place] = answer if alone else guarded(answer, None if value is _MISSING else value)
        if is_compiling:
            return
        for (module, _, _), (attributes, place, _, value) in zip(answers, own, strict=True):
            copied.append((attributes, attributes.get(_COPIER)))
            attributes[_COPIER] = partial(_copied, module, place, value, copied[-1][1])

    return putting_back(put_back, replace, eager)


def _copied(module: nn.Module, place: str, value: Any, copier: Any, memo: dict[int, Any]) -> nn.Module:
    """A copy of a module, as forward makes itself a teacher: what stands in for its method is not a part of it."""
    now = module.__dict__
    before = now.copy()
    for name, own in ((place, value), (_COPIER, _MISSING if copier is None else copier)):
        if own is _MISSING:
            del now[name]
        else:
            now[name] = own
    try:
        return copy.deepcopy(module, memo)
    finally:
        now.update(before)


class KeptToThread:
    """Inside, a network is refused to other threads than this one: in few calls, as data loaders have threads, too."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._own = network, network.__dict__
        self._place = "forward" if network._compiled_call_impl is None else _COMPILED
        self._before = {name: self._own[name] for name in (self._place, _COPIER) if name in self._own}
        self._undo = self.__exit__
        self._undos = opened.undos

    def __enter__(self) -> None:
        if self._undos is not None:
            self._undos.append(self._undo)
        own, place, before = self._own, self._place, self._before
        guard: Any = partial(of_one_thread, threading.get_ident(), getattr(self._network, place))
        guard._agm_guards, guard._agm_own = guard.args[1], before.get(place)
        own[place] = guard
        own[_COPIER] = partial(_copied, self._network, place, before.get(place, _MISSING), before.get(_COPIER))

    def __exit__(self, *error: object) -> None:
        undos = self._undos
        while undos and self._undo in undos and undos[-1] is not self._undo:
            undos.pop()()  # what was cut off inside comes first
        for name in (self._place, _COPIER):
            if name in self._before:
                self._own[name] = self._before[name]
            else:
                self._own.pop(name, None)
        if undos and undos[-1] is self._undo:
            undos.pop()


def _place(module: nn.Module, method: str) -> str:
    """The attribute that is called. A graph around the module has its forward in it, and not its compiled call."""
    compiled = method == "forward" and module._compiled_call_impl is not None
    return _COMPILED if compiled and not torch.compiler.is_compiling() else method


def _has_hooks(module: nn.Module) -> bool:
    return any([len(getattr(module, kind)) > 0 for kind in ALL_KINDS])
