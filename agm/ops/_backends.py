"""Which backend serves an op on a device, and why the others do not."""

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from agm.ops import _library

__all__ = ["BACKENDS", "Service", "backends", "select"]


_DEVICES = ("cpu", "cuda")
_FORWARD = tuple(op for op in _library.OPS if not op.endswith("_backward"))

_loading = threading.Lock()


@dataclass(frozen=True)
class Backend:
    """One way to serve ops: the overload it fills, and the reason why it cannot serve (None: it can)."""

    overload: str
    why_not: Callable[[str, str], str | None]  # (op, device type)


def _native(device: str, key: str) -> Callable[[str, str], str | None]:
    def why_not(op: str, device_type: str) -> str | None:
        if device_type != device:
            return f"serves {device} tensors only"
        if _library.native_error is not None:
            return _library.native_error
        if device == "cuda" and torch.version.hip is not None:
            return "this torch is a ROCm build: use triton"
        if not _library.has_native_kernel(op, key):
            note = f" ({_library.cuda_note})" if device == "cuda" and _library.cuda_note else ""
            return f"agm._C was built without a {key} kernel of {op}{note}"
        return None

    return why_not


def _triton_why_not(op: str, device_type: str) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not (device_type == "cpu" and interpreted):
        return "serves cuda tensors only (cpu tensors under TRITON_INTERPRET=1)"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install agm-torch[triton]"
    reason = _load_triton(op)
    if reason is None and (device_type == "cpu" or torch.cuda.is_available()):
        return _why_no_launch(device_type)
    return reason


@cache
def _why_no_launch(device_type: str) -> str | None:
    """Why Triton cannot launch on a device, found out once: it would show in the first step, by an exception."""
    launching = importlib.import_module("agm.kernels.launching")
    reason: str | None = launching.why_no_launch(device_type)
    return reason


def _load_triton(op: str) -> str | None:
    """Registers the Triton kernel of `op` at its first use: importing agm never needs triton."""
    with _loading:  # two threads may want it at once, and a kernel can be registered once only
        return _register_triton(op)


@cache
def _register_triton(op: str) -> str | None:
    room = "agm.kernels." + op.removesuffix("_backward").rstrip("_")
    try:
        launcher = getattr(importlib.import_module(room), op, None)
    except Exception as error:  # an old driver, a library that is missing: triton raises what it likes
        if not (isinstance(error, ModuleNotFoundError) and error.name == room):
            return f"triton does not load: {type(error).__name__}: {error}"
        launcher = None
    if launcher is None:
        return f"there is no Triton kernel of {op}"
    _library.library.impl(f"{op}.triton", launcher, "CompositeExplicitAutograd")
    return None


# In the order in which "auto" asks them. On a CPU that is the order of speed at every size in
# bench/results/head-cpu.jsonl, which a test compares. The two for GPUs were not measured yet: read from machine code,
# `triton` is predicted to be faster at no size (tests/ops/test_spills.py), and each of its launches is made in Python.
BACKENDS: Mapping[str, Backend] = {
    "cuda": Backend("default", _native("cuda", "CUDA")),
    "triton": Backend("triton", _triton_why_not),
    "cpp": Backend("default", _native("cpu", "CPU")),
    "reference": Backend("reference", lambda op, device_type: None),
}


# The GPU kernels of the modulation keep a response of every modality in registers.
MOST_ROWS = 2**6 - 1


def _why_not(name: str, op: str, device_type: str, many: bool) -> str | None:
    reason = BACKENDS[name].why_not(op, device_type)
    if reason is None and many and name in ("cuda", "triton"):
        return "it serves at most 6 modalities"
    return reason


def _automatic(op: str, device_type: str, many: bool = False) -> str:
    for name in BACKENDS:
        # The interpreter checks numbers; nobody wants it to serve by itself.
        if name == "triton" and device_type == "cpu":
            continue
        if _why_not(name, op, device_type, many) is None:
            return name
    raise AssertionError("the reference serves everything")


def chosen(op: str, device_type: str) -> str:
    """The name of the backend that serves `op` on a device type when none is named: AGM_BACKEND, or the automatic one.

    Raises:
        ValueError, RuntimeError: AGM_BACKEND names none, or one that cannot serve, as in `select`.
    """
    return _resolve(op, device_type, os.environ.get("AGM_BACKEND", "auto"), False)


@cache
def _resolve(op: str, device_type: str, name: str, many: bool) -> str:
    if name == "auto":
        name = _automatic(op, device_type, many)
    elif name not in BACKENDS:
        raise ValueError(
            f"Expected `backend` (or AGM_BACKEND) to be 'auto' or one of {sorted(BACKENDS)}, but got {name!r}."
        )
    reason = _why_not(name, op, device_type, many)
    if reason is not None:
        raise RuntimeError(
            f"Backend {name!r} was asked for by name but cannot serve {op} on {device_type}: {reason}. "
            "Use backend='auto', or see agm.backends()."
        )
    return name


def _overload(op: str, device_type: str, name: str, many: bool) -> str:
    return BACKENDS[_resolve(op, device_type, name, many)].overload


# Dynamo is to take the choice as a constant, not to trace how it is made (it looks through caches, so the cached
# function cannot bear the mark). `torch.compiler.assume_constant_result` sets it too, but imports all of dynamo.
_overload._dynamo_marked_constant = True  # type: ignore[attr-defined]


def select(op: str, device: torch.device, backend: str = "auto", *, rows: int = 0) -> Any:
    """The overload of `op` for tensors on `device`.

    Args:
        op: one of `agm.ops._library.OPS`.
        device: where the tensors are.
        backend: "auto" (then the environment variable AGM_BACKEND decides, if set), "cuda", "triton", "cpp" or
            "reference".
        rows: subsets that the op reads, where that is limited.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: a backend asked for by name cannot serve; the message says why.
    """
    if backend == "auto":
        backend = os.environ.get("AGM_BACKEND", "auto")
    many = False
    if rows > MOST_ROWS:  # a branch, since dynamo may not know the number but can be told which side of it
        many = True
    return getattr(getattr(torch.ops.agm, op), _overload(op, device.type, backend, many))


@dataclass(frozen=True)
class Service:
    """What serves one op on one device type."""

    op: str
    device: str
    backend: str  # what "auto" takes
    unavailable: Mapping[str, str]  # the other backends: name -> why it does not serve

    def __str__(self) -> str:
        others = "".join(f"\n    {name}: {reason}" for name, reason in self.unavailable.items())
        return f"{self.op} on {self.device}: {self.backend}{others}"


class Services(list[Service]):
    """What serves the ops; printed, a line an op with a column a device."""

    def by_op(self) -> dict[str, dict[str, str]]:
        """Op -> device -> backend. A backward that is served like its op is not named."""
        found: dict[str, dict[str, str]] = {}
        for service in self:
            found.setdefault(service.op, {})[service.device] = service.backend
        return {
            op: own for op, own in found.items() if own != found.get(op.removesuffix("_backward")) or op in _FORWARD
        }

    def reasons(self) -> dict[tuple[str, str], list[str]]:
        """(backend, why it does not serve) -> the ops on whose devices it could; the same reasons once."""
        found: dict[tuple[str, str], list[str]] = {}
        for service in self:
            for backend, reason in service.unavailable.items():
                if " tensors only" in reason:  # the other device's
                    continue
                ops = found.setdefault((backend, reason.replace(f" of {service.op}", "")), [])
                if (op := service.op.removesuffix("_backward")) not in ops:
                    ops.append(op)
        return found

    def __str__(self) -> str:
        rows = [("op", *_DEVICES), *((op, *own.values()) for op, own in self.by_op().items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    __repr__ = __str__


def backends() -> Services:
    """What serves each op on each device type, and why the other backends do not.

    Devices are "cpu" and "cuda"; without a GPU the latter says what would serve there. A forced backend
    (`AGM_BACKEND`) is not reflected: this is the automatic choice.

    Returns:
        One `Service` an op and a device. Printed together they are a table of what serves, in which a backward that is
        served like its op has no line of its own; print one for the reasons, or see `agm info`.
    """
    services = Services()
    for op in _library.OPS:
        for device in _DEVICES:
            reasons = {name: backend.why_not(op, device) for name, backend in BACKENDS.items()}
            missing = {name: reason for name, reason in reasons.items() if reason is not None}
            services.append(Service(op, device, _automatic(op, device), missing))
    return services
