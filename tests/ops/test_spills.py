"""Kernels compiled for GPUs that need not be here: every one compiles, and keeps its numbers in registers."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from bench import sass

from .building import CUDA_SOURCES
from .conftest import TARGETS

# Bytes a thread: the assembler gives away a few registers where one more block then fits.
FEW_SPILLS = 16
# What varies with the batch: kernels are not compiled once more for the last one.
BY_BATCH = {
    "batch",
    "row_stride",
    "batch_stride",
    "joint_stride",
    "size",
    "share",
    "shares",
    "programs",
    "train_values",
}


@cache  # several tests ask the same compilation
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


# Instructions for one class of one sample: where a kernel may not wait for anything but memory.
# (dtype, modalities, with the loss) -> at most
INSTRUCTIONS = {
    ("float", 2, False): 30,
    ("BFloat16", 2, False): 30,
    ("Half", 2, False): 30,
    ("float", 2, True): 40,
    ("BFloat16", 2, True): 40,
    ("Half", 2, True): 40,
    ("float", 3, False): 60,
    ("BFloat16", 3, False): 65,
    ("float", 3, True): 70,
    ("BFloat16", 3, True): 75,
}


@pytest.mark.parametrize("source", ["modulate", "modulate_cross_entropy"])
def test_the_loops_over_the_classes_are_short(source: str, compilations: dict[str, subprocess.Popen[str]]) -> None:
    process = compilations.get(f"{source}.cu")
    output_of(process, "nvcc")
    if sass.tool("cuobjdump") is None:
        pytest.skip("there is no cuobjdump")
    text = sass.disassembled(Path(process.args[-1]))
    found = [kernel for kernel in sass.kernels(text) if kernel.width > 1]
    assert len(found) >= 12
    for kernel in found:
        assert kernel.divisions == 0, kernel
        assert kernel.blocks >= 3, kernel
        bound = INSTRUCTIONS.get((kernel.dtype, kernel.modalities, kernel.loss))
        assert bound is None or kernel.per_class <= bound, kernel
    backward = {"modulate": "scale_rowsI", "modulate_cross_entropy": "scale_loss_rowsI"}[source]
    for width in ("fLi4E", "N3c108BFloat16ELi8E"):  # 16 bytes
        (body,) = [part for part in text.split("Function : ")[1:] if f"{backward}{width}" in part.split("\n", 1)[0]]
        stores = set(re.findall(r"\bSTG\S*", body))
        assert stores, backward
        assert all(".128" in store for store in stores), stores


@pytest.mark.parametrize("target", TARGETS)
def test_triton_compiles_without_spills(target: str, compilations: dict[str, subprocess.Popen[str]]) -> None:
    log = output_of(compilations.get(target), "triton")
    reports = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {report["dtype"] for report in reports} == set(TARGETS[target])
    assert len({report["kernel"] for report in reports}) == 18
    assert [report for report in reports if report["spills"] > FEW_SPILLS] == []
    # Integers that Triton looks at to compile anew: an odd last batch is to change none of them.
    found = {(report["kernel"], name) for report in reports for name in BY_BATCH & set(report["specialised"])}
    assert found == {("_reduce", "row_stride")}  # of features: their width
