"""Compiles every Triton kernel for GPUs that need not be here; prints one JSON line a kernel.

Run by test_compilers.py in a process of its own, since triton interprets or compiles, but not both.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from agm.kernels import modulate, modulate_additive
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = ("fp32", "bf16", "fp16", "fp64")

Case = tuple[Any, dict[str, str], dict[str, object], dict[str, object]]


def cases(dtype: str) -> Iterator[Case]:
    """(kernel, signature without constants, constants, options) as the launchers use them."""
    options = {"enable_fp_fusion": True}
    yield (
        modulate._scale_rows,
        {"grad": f"*{dtype}", "scales": "*fp64", "out": f"*{dtype}", "rows": "i32", "size": "i64"},
        {"BLOCK": modulate._BLOCK},
        options,
    )
    wide = "fp64" if dtype == "fp64" else "fp32"
    step = dict.fromkeys(("weights", "values", "scales"), "*fp64") | {
        "counts": "*i64",
        "alpha": "i64",
        "max_gap": "i64",
    }
    shape = {"batch": "i32", "classes": "i32"}
    strides = {"row_stride": "i64", "batch_stride": "i64", "ignore_index": "i32"}
    found = {"found": f"*{wide}", "beaten_by": "*i32"}
    inputs = {"logits": f"*{dtype}", "labels": "*i64", "weights": "*fp64"}
    for modalities in (2, 6) if dtype == "fp32" else (2,):
        tile = modulate._TILE[modalities]
        padded = {"PADDED": 1 << (modalities - 1).bit_length()}
        dtypes = {"DTYPE": tl.float64 if dtype == "fp64" else tl.float32}
        rows = {"ROWS": 2**modalities - 1}
        last = {"MODALITIES": modalities, "UPDATE": True, "SCALES": "subsets"}
        yield (
            modulate._score,
            {**inputs, "costs": "*fp64", "hits": "*i64", **shape, **strides, "cap": "i64"},
            {**rows, **padded, "SAMPLES": min(tile // 16, modulate._MAX_SAMPLES), "CLASSES": 16, **dtypes},
            options,
        )
        if dtype in ("bf16", "fp16"):  # the logits are converted when they are loaded; the rest is as for fp32
            return
        yield (
            modulate._score_shares,
            {**inputs, **found, **shape, "share": "i32", **strides},
            {**rows, **padded, "CLASSES": tile, **dtypes},
            options,
        )
        yield (
            modulate._finish_shares,
            {**found, "labels": "*i64", **shape, "shares": "i32", "ignore_index": "i32", "cap": "i64", **step},
            {**last, **padded, "SAMPLES": modulate._SAMPLES, **dtypes},
            options,
        )
        if dtype == "fp64":  # the same for all
            return
        yield (
            modulate._finish,
            {"costs": "*fp64", "hits": "*i64", "programs": "i32", **step},
            {**last, **padded, "BLOCK": modulate._PROGRAMS},
            options,
        )


def additive_cases(dtype: str) -> Iterator[Case]:
    """As `cases`, for additive fusions, with and without joint logits that were given."""
    options = {"enable_fp_fusion": True}
    wide = "fp64" if dtype == "fp64" else "fp32"
    dtypes = {"DTYPE": tl.float64 if dtype == "fp64" else tl.float32}
    inputs = dict.fromkeys(("present", "absent", "bias", "joint_logits", "out"), f"*{dtype}") | {"labels": "*i64"}
    shape = {"batch": "i32", "classes": "i32"}
    strides = dict.fromkeys(("row_stride", "batch_stride", "absent_stride", "joint_stride"), "i64")
    strides["ignore_index"] = "i32"
    found = {"found": f"*{wide}", "beaten_by": "*i32"}
    step = {"values": "*fp64", "counts": "*i64", "scales": "*fp64", "alpha": "i64", "max_gap": "i64"}
    left = {"costs": "*fp64", "hits": "*i64"}
    for modalities, given in ((2, False), (4, True), (6, True), (16, False)):
        padded = 1 << (modalities - 1).bit_length()
        tile = modulate_additive._TILE[padded]
        common = {"MODALITIES": modalities, "PADDED": padded}
        absent = {"bias": None} if given else {"joint_logits": None}
        yield (
            modulate_additive._score_additive,
            {**inputs, **left, **shape, **strides, "cap": "i64"},
            {**common, **absent, "SAMPLES": modulate_additive._MAX_STATES // padded, "CLASSES": 16, **dtypes},
            options,
        )
        yield (
            modulate_additive._score_additive_shares,
            {**inputs, **found, **shape, "share": "i32", **strides},
            {**common, **absent, "CLASSES": tile, **dtypes},
            options,
        )
        if dtype in ("bf16", "fp16"):  # as above, only the inputs differ
            continue
        last = {
            **common,
            "weights": None,
            "SCALES": "additive beside joint logits" if given else "additive",
            "UPDATE": True,
        }
        yield (
            modulate._finish_shares,
            {**found, "labels": "*i64", **shape, "shares": "i32", "ignore_index": "i32", "cap": "i64", **step},
            {**last, "SAMPLES": modulate._SAMPLES, **dtypes},
            options,
        )
        if dtype == "fp32":  # the same for all
            yield modulate._finish, {**left, "programs": "i32", **step}, {**last, "BLOCK": modulate._PROGRAMS}, options
    gradient = {"grad": f"*{dtype}", "sums": "*fp64", "scales": "*fp64", "out": f"*{dtype}", "rows": "i32", **shape}
    for classes in (16, modulate_additive._MAX_CLASSES):
        yield (
            modulate_additive._scale_and_sum,
            {**gradient, "share": "i32"},
            {"SAMPLES": modulate_additive._BLOCK // classes, "CLASSES": classes},
            options,
        )
    yield (
        modulate_additive._scale_columns,
        {**{name: kind for name, kind in gradient.items() if name not in ("grad", "batch")}, "shares": "i32"},
        {"SHARES": modulate_additive._SHARES, "CLASSES": modulate_additive._MAX_CLASSES, **dtypes},
        options,
    )


def ptxas_report(ptx: str, architecture: str) -> dict[str, int]:
    import triton.backends.nvidia

    ptxas = next(Path(triton.backends.nvidia.__file__).parent.glob("bin/ptxas*"))
    if architecture == "sm_100":  # triton carries a newer assembler for Blackwell
        newer = ptxas.parent / "ptxas-blackwell"
        ptxas = newer if newer.exists() else ptxas
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        target = re.search(r"^\.target (\w+)", ptx, re.M)[1]
        command = [ptxas, "-v", f"--gpu-name={target}", source, "-o", source.with_suffix(".cubin")]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
    }


def amdgcn_report(assembly: str) -> dict[str, int]:
    return {
        "registers": int(re.search(r"\.vgpr_count:\s+(\d+)", assembly)[1]),
        # Scalar registers spill into lanes of vector registers, not into memory.
        "spills": int(re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)[1]),
    }


def main(architecture: str) -> None:
    target = TARGETS[architecture]
    for dtype in DTYPES:
        for kernel, signature, constants, options in chain(cases(dtype), additive_cases(dtype)):
            signature = {**signature, **dict.fromkeys(constants, "constexpr")}
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            binary = triton.compile(source, target=target, options=options)
            if target.backend == "cuda":
                report = ptxas_report(binary.asm["ptx"], architecture)
            else:
                report = amdgcn_report(binary.asm["amdgcn"])
            constants = {name: str(constant) for name, constant in constants.items()}
            print(json.dumps({"kernel": kernel.__name__, "dtype": dtype, "constants": constants, **report}))


if __name__ == "__main__":
    main(sys.argv[1])
