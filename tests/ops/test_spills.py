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

THREADS = 128  # of a Triton program

# Bytes a thread: the assembler gives away a few registers where one more block then fits.
FEW_SPILLS = 24
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
    ("float", 5, True): 330,
    ("float", 6, True): 650,
    ("BFloat16", 6, True): 710,
}


@pytest.mark.parametrize("source", ["modulate", "modulate_cross_entropy"])
def test_the_loops_over_the_classes_are_short(source: str, compilations: dict[str, subprocess.Popen[str]]) -> None:
    process = compilations.get(f"{source}.cu")
    output_of(process, "nvcc")
    if sass.tool("cuobjdump") is None:
        pytest.skip("there is no cuobjdump")
    text = sass.disassembled(Path(process.args[-1]))
    every = list(sass.kernels(text))
    for kernel in every:
        bound = INSTRUCTIONS.get((kernel.dtype, kernel.modalities, kernel.loss))
        assert bound is None or kernel.per_class <= bound, kernel
    found = [kernel for kernel in every if kernel.width > 1]
    assert len(found) >= 12
    # Rows that are not aligned, as those of an odd number of classes, are loaded as wide but for their ends.
    assert sum(kernel.peeled for kernel in found) == len(found) // 2
    for kernel in found:
        width = f"LDG.E.{8 * sass.SIZES[kernel.dtype] * kernel.width}."
        assert sum(load.startswith(width) for load in kernel.loads) == 2**kernel.modalities - 1, kernel
        assert kernel.modalities > 3 or kernel.loss or width == "LDG.E.128.", kernel
        assert kernel.divisions == 0, kernel
        assert kernel.blocks >= 3, kernel
    backward = {"modulate": "scale_rowsI", "modulate_cross_entropy": "scale_loss_rowsI"}[source]
    for width in ("fLi4E", "N3c108BFloat16ELi8E"):  # 16 bytes
        bodies = [part for part in text.split("Function : ")[1:] if f"{backward}{width}" in part.split("\n", 1)[0]]
        # With the loss, one more for rows that are not aligned: across samples.
        assert len(bodies) == (2 if source == "modulate_cross_entropy" else 1)
        for body in bodies:
            stores = set(re.findall(r"\bSTG\S*", body))
            assert stores, backward
            assert all(".128" in store for store in stores), stores


@pytest.mark.parametrize("target", TARGETS)
def test_triton_compiles_without_spills(target: str, compilations: dict[str, subprocess.Popen[str]]) -> None:
    log = output_of(compilations.get(target), "triton")
    from agm.kernels.launching import PROGRAMS_OF_MULTIPROCESSOR, PROGRAMS_WITH_LOSS

    reports = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {report["dtype"] for report in reports} == set(TARGETS[target])
    assert len({report["kernel"] for report in reports}) == 18
    assert [report for report in reports if report["spills"] > FEW_SPILLS] == []
    # What scores two modalities fits on a multiprocessor as often as its grid is made for.
    for report in reports:
        constants = report["constants"]
        if target.startswith("sm_") and report["dtype"] != "fp64" and constants.get("ROWS") == "3":
            shares = report["kernel"] == "_score_shares" and constants["LOSS"] == "True"
            programs = PROGRAMS_WITH_LOSS if shares else PROGRAMS_OF_MULTIPROCESSOR
            assert report["registers"] * THREADS * programs <= sass.REGISTERS, report
    # Integers that Triton looks at to compile anew: an odd last batch is to change none of them.
    found = {(report["kernel"], name) for report in reports for name in BY_BATCH & set(report["specialised"])}
    assert found == {("_reduce", "row_stride")}  # of features: their width


# The same of Triton's for two modalities, on tiles of few classes and of many; comparing each class would take more.
TRITON_INSTRUCTIONS = {
    ("_score", False): 145,
    ("_score_shares", False): 70,
    ("_score", True): 205,
    ("_score_shares", True): 105,
}
BYTES = {"fp32": ("float", 4), "bf16": ("BFloat16", 2)}
SIZES = ((64, 10), (64, 309), (4096, 309), (65536, 10), (2048, 32768))  # (B, C)


def test_triton_is_predicted_to_be_faster_at_no_size(compilations: dict[str, subprocess.Popen[str]]) -> None:
    """The order in which "auto" asks the two for GPUs: CUDA's kernel on rows that are not aligned, where it is slowest,
    against Triton's on tiles that the classes fill."""
    process = compilations.get("modulate.cu")
    output_of(process, "nvcc")
    log = output_of(compilations.get("sm_90"), "triton")
    if sass.tool("cuobjdump") is None:
        pytest.skip("there is no cuobjdump")
    slowest: dict[tuple[str, int], float] = {}
    for kernel in sass.kernels(sass.disassembled(Path(process.args[-1]))):
        key = (kernel.dtype, kernel.modalities)
        slowest[key] = max(slowest.get(key, 0.0), kernel.per_class)
    compared = set()
    for report in (json.loads(line) for line in log.splitlines() if line.startswith("{")):
        if "per_class" not in report:
            continue
        loss = report["constants"]["LOSS"] == "True"
        assert report["per_class"] <= TRITON_INSTRUCTIONS[report["kernel"], loss], report
        if loss:  # which sums in float64
            continue
        assert report["wide"] == 0, report  # no weight is converted in the loop
        name, size = BYTES[report["dtype"]]
        for shape in [(size, 2, *each, gpu) for each in SIZES for gpu in sass.GPUS.values()]:
            cuda = sass.least_seconds(slowest[name, 2], *shape)
            assert cuda <= sass.least_seconds(report["per_class"], *shape), (report, shape)
        compared.add((name, report["kernel"]))
    assert compared == {("float", "_score"), ("float", "_score_shares"), ("BFloat16", "_score")}


def test_more_modalities_wait_for_memory(compilations: dict[str, subprocess.Popen[str]]) -> None:
    """There no other kernel could be predicted to be faster by more than a median may be off (bench/test_choice.py)."""
    process = compilations.get("modulate.cu")
    output_of(process, "nvcc")
    if sass.tool("cuobjdump") is None:
        pytest.skip("there is no cuobjdump")
    kernels = list(sass.kernels(sass.disassembled(Path(process.args[-1]))))
    assert {kernel.modalities for kernel in kernels} == set(range(2, 7))
    for kernel in kernels:
        if kernel.modalities == 2:
            continue
        for gpu in sass.GPUS.values():
            shape = (sass.SIZES[kernel.dtype], kernel.modalities, 4096, 309, gpu)
            assert sass.least_seconds(kernel.per_class, *shape) <= 1.25 * sass.least_seconds(0, *shape), kernel
