"""Modules whose mode cannot be told where it is read."""

import dis
import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from agm._one_pass.layouts import Unsplit

__all__ = ["check_mode", "names_mode", "telling_around"]

_compared: dict[type, bool] = {}
_named: dict[type, bool] = {}


def check_mode(module: nn.Module) -> None:
    """That a module in training mode can tell where its mode is read.

    Raises:
        Unsplit: it has one of its own, asks for it in a way that nobody can see, or goes past it.
    """
    kind = type(module)
    if hasattr(kind, "training") or isinstance(module, nn.RNNBase):
        raise Unsplit("it has a mode of its own (`training`)")
    if isinstance(module, _NormBase) and not module.track_running_stats and module.running_mean is not None:
        raise Unsplit("a norm of it has running statistics which it does not track")
    _check_code(module)


def telling_around(modules: Sequence[nn.Module], around: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules around an encoder that are in training mode, and can tell where its code reads that.

    Those of TorchScript, which keep it elsewhere, and those of `torch.compile`, which have that of a module inside, are
    left out.

    Args:
        modules: of the encoder.
        around: of its network beside these.

    Raises:
        Unsplit: one has a mode of its own, or the encoder asks for one in a way that nobody can see.
    """
    training = [module for module in around if module.training]
    for kind in {type(module) for module in training}:
        if hasattr(kind, "training") and not kind.__module__.startswith("torch."):
            raise Unsplit(f"a module beside it ({kind.__name__}) has a mode of its own (`training`)")
    if training:
        for module in modules:
            _check_code(module)
    return [module for module in training if "training" in module.__dict__]


def names_mode(module: nn.Module) -> bool:
    """Whether code of a user's module names its mode, and may hand it to someone."""
    kind = type(module)
    if kind not in _named:
        _named[kind] = any(map(_names, _methods(kind)))
    return _named[kind] or any(_names(one) for one in module.__dict__.values() if isinstance(one, FunctionType))


def _names(function: FunctionType) -> bool:
    """Whether its code names the mode, or that of a function that it is written with."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    codes = [one.__code__ for one in (function, *cells) if isinstance(one, FunctionType)]
    return any("training" in (*one.co_names, *one.co_consts) for code in codes for one in _codes(code))


def _check_code(module: nn.Module) -> None:
    kind = type(module)
    if kind not in _compared:
        _compared[kind] = any(map(_asks, _methods(kind)))
    compares = _compared[kind]
    for value in module.__dict__.values():  # no comprehension: it would be a call in every step
        compares = compares or (isinstance(value, FunctionType) and _compares(value))
    if compares:
        raise Unsplit("its code asks whether its mode `is` another one")


def _methods(kind: type) -> Iterator[FunctionType]:
    """Those of a user's class."""
    for base in kind.__mro__:
        for value in () if base.__module__.startswith("torch.") else vars(base).values():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                yield function


def _asks(method: FunctionType) -> bool:
    """Whether a method that names the mode compares by `is`, or a function does that it may hand the mode to."""
    names = {name for code in _codes(method.__code__) for name in code.co_names}
    if "training" not in names:
        return False
    given = [method.__globals__.get(name) for name in names]
    given += [cell.cell_contents for cell in method.__closure__ or ()]
    return any(_compares(one) for one in (method, *given) if isinstance(one, FunctionType))


def _compares(function: FunctionType) -> bool:
    """Whether it is none of torch's, and has `... is True` or `... is bool`."""
    return not str(function.__module__).startswith("torch.") and _has_is(function.__code__)


@lru_cache(maxsize=4096)
def _has_is(code: CodeType) -> bool:
    for one in _codes(code):
        for before, after in itertools.pairwise(dis.get_instructions(one)):
            if after.opname == "IS_OP" and (isinstance(before.argval, bool) or before.argval == "bool"):
                return True
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Of a function, and of those that are written in it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)
