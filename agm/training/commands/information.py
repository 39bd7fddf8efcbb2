"""`agm info`."""

from __future__ import annotations

import importlib.util
import os
import platform

import click
import torch

import agm
from agm.ops._backends import BACKENDS
from agm.training.commands.as_json import AS_JSON, terminal, write_json
from agm.training.console import key_value_table, service_table
from agm.training.errors import UserError

__all__ = ["info_command"]


@click.command("info")
@AS_JSON
def info_command(as_json: bool) -> None:
    """Show versions, devices and backends.

    Tells which backend serves each operation, and why the others do not.

    \b
    agm info --json
    """
    console, services = terminal(as_json), agm.backends()
    console.print(key_value_table("versions", _versions()))
    console.print(key_value_table("devices", _devices()))
    console.print(key_value_table("native library (agm._C)", _native()))
    console.print(service_table(services))
    if as_json:
        of_ops = [
            {"op": s.op, "device": s.device, "backend": s.backend, "unavailable": s.unavailable} for s in services
        ]
        write_json({"versions": _versions(), "devices": _devices(), "native": _native(), "backends": of_ops})
    if forced := os.environ.get("AGM_BACKEND"):
        console.say(f"AGM_BACKEND={forced} forces this backend instead of the automatic choice.")
        if forced not in ("auto", *BACKENDS):
            raise UserError(f"Expected AGM_BACKEND to be 'auto' or one of {sorted(BACKENDS)}, but got {forced!r}.")


def _versions() -> dict[str, object]:
    versions: dict[str, object] = {
        "agm": agm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if importlib.util.find_spec("triton") is None:
        return versions | {"triton": "not installed: pip install 'agm-torch[triton]'"}
    from importlib.metadata import version

    return versions | {"triton": version("triton")}


def _devices() -> dict[str, object]:
    devices: dict[str, object] = {
        "cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    }
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        devices["cuda"] = "no GPU found" if built else "off: this torch is a CPU build"
    return devices


def _native() -> dict[str, object]:
    from agm.ops import _library

    if _library.native is None:
        return {"not loaded": _library.native_error}
    info = _library.native.build_info()
    return dict(info) if isinstance(info, dict) else {"build": info}
