"""A first step where Triton can neither compile nor keep what it compiles: the choice passes it over, and says why.

On each machine, a process of its own, Triton goes its own way up to where it fails: torch says that there is a GPU, a
driver is found by its file's name, and the number that the probe writes lies on the CPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What the machine lacks -> the variables that show it. No folder can be made below a file, by whatever user; of one
# that is read-only a test may be the owner.
MACHINES = {
    "a compiler": {"PATH": "/nowhere"},
    "a home": {"TRITON_HOME": os.devnull + "/x"},
    "a cache": {"TRITON_CACHE_DIR": os.devnull + "/x"},
}
REASONS = {
    "a compiler": "Failed to find C compiler",
    "a home": "[Errno 20] Not a directory: '/dev/null/x",
    "a cache": "[Errno 20] Not a directory: '/dev/null/x",
}

FIRST_STEPS = """
import json, os, sys, torch, triton
zeros = torch.zeros
torch.zeros = lambda *size, device=None, **options: zeros(*size, **options)
torch.cuda.is_available = lambda: True
from agm.ops import _backends
_backends.BACKENDS = {**_backends.BACKENDS, "cuda": _backends.Backend("default", lambda op, device: "not built")}
for name, variables in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        os.environ.update(variables)
        served = [_backends._automatic(op, "cuda") for op in ("modulate", "modulate_backward", "batch_norm_rows")]
        print(json.dumps([name, served, _backends.BACKENDS["triton"].why_not("modulate", "cuda")]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


@pytest.fixture(scope="module")
def first_steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], str]]:
    """Machine -> what serves three ops there, and why Triton does not."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    driver, home = tmp_path_factory.mktemp("driver"), tmp_path_factory.mktemp("home")
    (driver / "libcuda.so.1").touch()
    steering = ("TRITON_INTERPRET", "TRITON_CACHE_DIR", "TRITON_HOME", "CC", "CXX")
    environment = {name: value for name, value in os.environ.items() if name not in steering}
    environment |= {"TRITON_LIBCUDA_PATH": str(driver), "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FIRST_STEPS, json.dumps(MACHINES)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {name: (served, reason) for name, served, reason in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("name", MACHINES)
def test_triton_is_passed_over_without(first_steps: dict[str, tuple[list[str], str]], name: str) -> None:
    served, reason = first_steps[name]
    assert served == ["reference"] * 3
    assert reason.startswith(f"triton cannot launch a kernel here: {REASONS[name]}")
