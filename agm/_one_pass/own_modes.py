"""Modules whose mode cannot be told where it is read."""

import dis
import itertools
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from agm._one_pass.layouts import Unsplit

__all__ = ["check_mode", "telling_around"]

_compared: dict[type, bool] = {}


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
    _check_code(kind)


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
            _check_code(type(module))
    return [module for module in training if "training" in module.__dict__]


def _check_code(kind: type) -> None:
    if kind not in _compared:
        _compared[kind] = any(_asks(code) for code in _codes(kind))
    if _compared[kind]:
        raise Unsplit("its code asks whether its mode `is` another one")


def _codes(kind: type) -> Iterator[CodeType]:
    """What the methods of a user's class run."""
    pending = [
        value.__code__
        for base in kind.__mro__
        if not base.__module__.startswith("torch.")
        for value in (
            getattr(value, "fget", None) or getattr(value, "__func__", value) for value in vars(base).values()
        )
        if isinstance(value, FunctionType)
    ]
    while pending:
        code = pending.pop()
        yield code
        pending.extend(one for one in code.co_consts if isinstance(one, CodeType))


def _asks(code: CodeType) -> bool:
    """Whether it has `... is True`, and the name of the mode."""
    if "training" not in code.co_names:
        return False
    steps = itertools.pairwise(dis.get_instructions(code))
    return any(after.opname == "IS_OP" and isinstance(before.argval, bool) for before, after in steps)
