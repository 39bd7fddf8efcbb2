"""Kernels compiled for GPUs that need not be here: every one compiles, and keeps its numbers in registers."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from .building import CUDA_SOURCES
from .conftest import TARGETS

# Bytes a thread: the assembler gives away a few registers where one more block then fits.
FEW_SPILLS = 16


def output_of(process: subprocess.Popen[str] | None, what: str) -> str:
    if process is None:
        pytest.skip(f"there is no {what}")
    log = process.communicate()[0]
    assert process.returncode == 0, log
    return log


@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.name)
def test_cuda_compiles_without_spills(source: Path, compilations: dict[str, subprocess.Popen[str]]) -> None:
    log = output_of(compilations.get(source.name), "nvcc")
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_90'", log)
    assert kernels
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) >= len(kernels)
    assert set(spills) == {("0", "0")}, log


@pytest.mark.parametrize("target", TARGETS)
def test_triton_compiles_without_spills(target: str, compilations: dict[str, subprocess.Popen[str]]) -> None:
    log = output_of(compilations.get(target), "triton")
    reports = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {report["dtype"] for report in reports} == set(TARGETS[target])
    assert len({report["kernel"] for report in reports}) == 18
    assert [report for report in reports if report["spills"] > FEW_SPILLS] == []
