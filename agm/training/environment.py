"""Where a run happens: what is recorded of it, and how it is made to repeat bit for bit."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata

import numpy as np
import torch
from torch.utils import deterministic as _deterministic

from agm.ops._backends import chosen
from agm.training.config import Config
from agm.training.errors import UserError

__all__ = ["backend", "environment", "reproducible"]


def environment(config: Config) -> Mapping[str, str]:
    device = torch.device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "agm": _version("agm-torch"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": name or platform.machine(),
        "backend": backend(config),
    }


def backend(config: Config) -> str:
    """The backend of the modulation in a run.

    Raises:
        UserError: AGM_BACKEND names one that cannot serve there.
    """
    try:
        return chosen("modulate", torch.device(config.device).type)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{error} It was named by the environment variable AGM_BACKEND.") from error


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


@contextmanager
def reproducible(config: Config) -> Iterator[None]:
    """Seeds torch and makes it deterministic; everything is as before afterwards."""
    device = torch.device(config.device)
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = _deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if config.threads is not None and config.threads != threads:
                torch.set_num_threads(config.threads)
            if device.type == "cuda":
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
                torch.use_deterministic_algorithms(True, warn_only=True)
                _deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.manual_seed(config.seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            _deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
