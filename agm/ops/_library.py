"""The schemas of every op, and the loading of the native library that fills their dispatch keys.

The schemas live in Python, so the ops exist (served by the reference) where no binary was built. Each op
has the overloads `default`, whose keys CPU and CUDA the native library fills, `triton`, and `reference`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from agm.ops import reference

_SIGNATURES = {
    "modulate": (
        "(Tensor masked_logits, Tensor target, Tensor(a!) values, Tensor(b!) counts, float alpha,"
        " float max_gap, float floor, int ignore_index, bool update) -> Tensor"
    ),
    "modulate_backward": "(Tensor grad, Tensor subset_scales) -> Tensor",
}


def _fake_modulate(masked_logits: torch.Tensor, *_: object) -> torch.Tensor:
    return masked_logits.new_empty(masked_logits.shape[0], dtype=torch.float64)


def _fake_modulate_backward(grad: torch.Tensor, subset_scales: torch.Tensor) -> torch.Tensor:
    return grad.new_empty((subset_scales.shape[0], *grad.shape))


_FAKES: dict[str, Callable[..., torch.Tensor]] = {
    "modulate": _fake_modulate,
    "modulate_backward": _fake_modulate_backward,
}

OPS = tuple(_SIGNATURES)

library = torch.library.Library("agm", "DEF")
for _op, _signature in _SIGNATURES.items():
    for _overload in ("", ".triton", ".reference"):
        library.define(f"{_op}{_overload}{_signature}", tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"agm::{_op}{_overload}", _FAKES[_op], lib=library)
    for _overload in ("", ".reference"):
        library.impl(_op + _overload, getattr(reference, _op), "CompositeExplicitAutograd")


def _build_reason() -> str:
    """Why setup.py built no native library; it leaves a note where it tried to."""
    note = Path(__file__).parent.parent / "_native.txt"
    if note.is_file():
        return note.read_text(encoding="utf-8").strip()
    return "install with a C++ compiler and --no-build-isolation"


def _load_native() -> tuple[ModuleType | None, str | None]:
    """The native module, or the reason why there is none."""
    try:
        return importlib.import_module("agm._C"), None
    except ModuleNotFoundError as error:
        if error.name != "agm._C":
            raise
        return None, f"agm._C is not built: {_build_reason()}"
    except ImportError as error:  # built, but against something that is not here
        return None, f"agm._C does not load: {error}"


native, native_error = _load_native()


def has_native_kernel(op: str, dispatch_key: str) -> bool:
    """Whether the native library filled `dispatch_key` ("CPU" or "CUDA") of `op`."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"agm::{op}", dispatch_key)
