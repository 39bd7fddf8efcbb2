"""The automatic choice where a fast path cannot serve: it says why, and nothing is raised in a first step."""

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import agm
from agm.ops import _backends, _library


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What was found out about backends is found out anew, and forgotten in the end."""
    found_out = (_backends._why_no_launch, _backends._resolve)
    for cached in found_out:
        cached.cache_clear()
    yield
    for cached in found_out:
        cached.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        PermissionError(13, "Permission denied", "/home/user/.triton"),
        FileNotFoundError("libcuda.so cannot found!"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_triton_that_cannot_launch_is_passed_over(
    error: Exception, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    launching = importlib.import_module("agm.kernels.launching")

    class Broken:
        launches = 0

        def __getitem__(self, grid: object) -> "Broken":
            return self

        def __call__(self, *arguments: object) -> None:
            Broken.launches += 1
            raise error

    zeros = torch.zeros
    monkeypatch.setattr(launching, "_store_one", Broken())
    monkeypatch.setattr(launching.torch, "zeros", lambda *size, device, **rest: zeros(*size, **rest))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(_backends.BACKENDS, "cuda", _backends.Backend("default", lambda op, device: "not built"))
    for op in ("modulate", "expand_subsets"):
        assert _backends._automatic(op, "cuda") == "reference"
        with pytest.raises(RuntimeError, match="triton cannot launch a kernel here"):
            _backends._resolve(op, "cuda", "triton", False)
    assert Broken.launches == 1  # asked once, not in every step
    reason = _backends.BACKENDS["triton"].why_not("modulate", "cuda")
    assert (str(error).splitlines() or [type(error).__name__])[0] in reason


NOT_LOADING = [
    RuntimeError("driver too old"),
    OSError("libcuda.so.1: cannot open shared object file"),
    ImportError("undefined symbol: _ZN3c10"),
    ModuleNotFoundError("No module named 'llvm'", name="llvm"),
]


@pytest.mark.parametrize("error", NOT_LOADING, ids=lambda error: type(error).__name__)
def test_triton_that_does_not_load_is_passed_over(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        raise error

    monkeypatch.setattr(_backends, "_register_triton", _backends._register_triton.__wrapped__)
    monkeypatch.setattr(_backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(_backends.importlib, "import_module", load)
    reasons = {service.unavailable["triton"] for service in agm.backends() if service.device == "cuda"}
    assert reasons == {f"triton does not load: {type(error).__name__}: {error}"}


@pytest.mark.parametrize("error", NOT_LOADING, ids=lambda error: type(error).__name__)
def test_a_native_library_that_does_not_load_is_passed_over(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        raise error

    monkeypatch.setattr(_library.importlib, "import_module", load)
    assert _library._load_native() == (None, f"agm._C does not load: {type(error).__name__}: {error}")


def test_triton_that_can_launch_serves() -> None:
    triton = pytest.importorskip("triton")
    launching = importlib.import_module("agm.kernels.launching")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = launching.why_no_launch(device)
    if device == "cpu" and triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        assert "only 0-dimensional arrays" in found  # of which loops of that interpreter have others
    else:
        assert found is None
