"""Every native kernel under the address and the undefined-behaviour sanitizers: those of the CPU as they are, those
of CUDA in the emulator. Torch allocates through the sanitizer there, so no access beyond a tensor goes unseen."""

import subprocess
import sys

import pytest

from . import building, defects

# In a process each, since a report ends it.
RUN_EACH = """
import os, sys, torch
path, *names = sys.argv[1:]
library = torch.library.Library("agm_defects", "DEF")
for name in names:
    library.define(name + "(Tensor numbers) -> Tensor")
torch.ops.load_library(path)
for name in names:
    print("run", name, flush=True)
    if os.fork() == 0:
        getattr(torch.ops.agm_defects, name)(torch.arange(256.0))
        print("no report", flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    """What the sanitizers say of each kernel."""
    library = defects.library(*building.SANITIZERS)
    names = (*defects.CORRECT, *defects.SANITIZED)
    command = [sys.executable, "-c", RUN_EACH, str(library.path), *names]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    log = subprocess.run(command, env=building.under_sanitizers(), check=False, **streams).stdout
    assert log.startswith("run "), log
    return dict(part.split("\n", 1) for part in log.removeprefix("run ").split("\nrun "))


@pytest.mark.parametrize("name", defects.SANITIZED)
def test_a_defect_is_reported(reports: dict[str, str], name: str) -> None:
    assert defects.SANITIZED[name] in reports[name]
    assert "no report" not in reports[name]


def test_a_correct_kernel_is_not_reported(reports: dict[str, str]) -> None:
    assert [reports[name].strip() for name in defects.CORRECT] == ["no report"]


def test_no_kernel_leaves_its_memory(sanitized_session: subprocess.Popen[str] | None) -> None:
    if sanitized_session is None:
        pytest.skip(str(building.why_not()))
    log = sanitized_session.communicate()[0]
    assert sanitized_session.returncode == 0, log
