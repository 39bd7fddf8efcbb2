"""Compiles every Triton kernel for GPUs that need not be here; prints one JSON line a kernel.

Run by test_compilers.py in a process of its own, since triton interprets or compiles, but not both.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from agm.kernels import expand_subsets, modulate, modulate_cross_entropy
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = ("fp32", "bf16", "fp16", "fp64")

Case = tuple[Any, dict[str, Any], dict[str, object], dict[str, object]]


OPTIONS = {"enable_fp_fusion": True}
STEP = {
    **dict.fromkeys(("weights", "values", "scales"), "*fp64"),
    "counts": "*i64",
    "alpha": "i64",
    "max_gap": "i64",
}
SHAPE = {"batch": "i32", "classes": "i32"}


def backward_cases(dtype: str, wide: str, dtypes: dict[str, Any]) -> Iterator[Case]:
    yield (
        modulate._scale_rows,
        {"grad": f"*{dtype}", "scales": "*fp64", "out": f"*{dtype}", "rows": "i32", "size": "i64"},
        {"BLOCK": modulate._BLOCK},
        OPTIONS,
    )
    inputs = dict.fromkeys(("logits", "grad_logits", "out"), f"*{dtype}") | {"labels": "*i64"}
    inputs |= dict.fromkeys(("grad_loss", "class_weight", "normalizer"), f"*{wide}")
    inputs |= dict.fromkeys(("sums", "scales"), "*fp64")
    strides = {"rows": "i32", **SHAPE, "batch_stride": "i64", "ignore_index": "i32", "label_smoothing": "i64"}
    for classes in (16, modulate_cross_entropy._TILE):
        yield (
            modulate_cross_entropy._scale_loss_rows,
            {**inputs, **strides},
            {"SAMPLES": modulate_cross_entropy._TILE // classes, "CLASSES": classes, **dtypes},
            OPTIONS,
        )


def step_cases(dtype: str, wide: str, dtypes: dict[str, Any], modalities: int, loss: bool) -> Iterator[Case]:
    """(kernel, signature without constants, constants, options) as the launchers use them."""
    strides = {"row_stride": "i64", "batch_stride": "i64", "ignore_index": "i32"}
    found = {"found": f"*{wide}", "beaten_by": "*i32"}
    inputs = {"logits": f"*{dtype}", "labels": "*i64", "weights": "*fp64"}

    def only_with_loss(**signature: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The arguments of the loss: their types, or the constant None."""
        return (signature, {}) if loss else ({}, dict.fromkeys(signature))

    tile = modulate._TILE[modalities]
    both = {"PADDED": 1 << (modalities - 1).bit_length(), "LOSS": loss, "SMOOTHING": loss}
    rows = {"ROWS": 2**modalities - 1}
    last = {"MODALITIES": modalities, "UPDATE": True}
    weight, normalizer = {"class_weight": f"*{wide}"}, {"normalizer": f"*{wide}"}
    mean = {"label_smoothing": "i64", "loss": f"*{wide}", "sums": "*fp64"}

    own, none = only_with_loss(**weight, **normalizer, losses="*fp64")
    yield (
        modulate._score,
        {**inputs, "costs": "*fp64", "hits": "*i64", **SHAPE, **strides, "cap": "i64", **own},
        {**rows, **both, "SAMPLES": min(tile // 16, modulate._MAX_SAMPLES), "CLASSES": 16, **dtypes, **none},
        OPTIONS,
    )
    if dtype in ("bf16", "fp16"):  # the logits are converted when they are loaded; the rest is as for fp32
        return
    own, none = only_with_loss(**weight, joint_found="*fp64")
    yield (
        modulate._score_shares,
        {**inputs, **found, **SHAPE, "share": "i32", **strides, **own},
        {**rows, **both, "CLASSES": tile, **dtypes, **none},
        OPTIONS,
    )
    own, none = only_with_loss(joint_found="*fp64", **weight, **normalizer, **mean)
    more = {"shares": "i32", "ignore_index": "i32", "cap": "i64"}
    yield (
        modulate._finish_shares,
        {**found, "labels": "*i64", **SHAPE, **more, **STEP, **own},
        {**last, **both, "SAMPLES": modulate._SAMPLES, **dtypes, **none},
        OPTIONS,
    )
    if dtype == "fp64" and not loss:  # the same for all
        return
    own, none = only_with_loss(losses="*fp64", **weight, **mean)
    yield (
        modulate._finish,
        {"costs": "*fp64", "hits": "*i64", "programs": "i32", "classes": "i32", **STEP, **own},
        {**last, **both, "BLOCK": modulate._PROGRAMS, **none},
        OPTIONS,
    )


def expand_subsets_cases(dtype: str, wide: str, dtypes: dict[str, Any]) -> Iterator[Case]:
    for modalities in (2, 6) if dtype in ("fp32", "fp64") else (2,):
        widths = {"widths": ("i32",) * modalities}
        rows = dict.fromkeys(("present", "absent"), (f"*{dtype}",) * modalities)
        rows |= {"out": f"*{dtype}", "strides": ("i64",) * modalities, "batch": "i32"}

        def tile(size: int, modalities: int = modalities) -> dict[str, object]:
            columns, samples = expand_subsets._tile([512], 64, size)
            return {"MODALITIES": modalities, "SAMPLES": samples, "COLUMNS": columns}

        yield expand_subsets._concatenate, {**rows, **widths, "row_width": "i32"}, tile(expand_subsets._TILE), OPTIONS
        yield expand_subsets._sum, {**rows, "width": "i32"}, {**tile(expand_subsets._SUM_TILE), **dtypes}, OPTIONS
        grads = {"grad": f"*{dtype}", "grad_present": f"*{dtype}", "partial": f"*{wide}"}
        for shared in (1, 1 << (modalities - 1).bit_length()):  # concatenated, summed
            yield (
                expand_subsets._reduce,
                {**grads, **widths, "batch": "i32", "row_stride": "i64", "total": "i32"},
                {**tile(expand_subsets._TILE // shared), "SHARED": shared, **dtypes},
                OPTIONS,
            )
    yield (
        expand_subsets._sum_partial,
        {"partial": f"*{wide}", "grad_absent": f"*{dtype}", "programs": "i32", "total": "i32"},
        {"PROGRAMS": expand_subsets._PROGRAMS, "COLUMNS": expand_subsets._TILE // expand_subsets._PROGRAMS},
        OPTIONS,
    )


def cases(dtype: str) -> Iterator[Case]:
    wide = "fp64" if dtype == "fp64" else "fp32"
    dtypes = {"DTYPE": tl.float64 if dtype == "fp64" else tl.float32}
    yield from backward_cases(dtype, wide, dtypes)
    for modalities in (2, 6) if dtype == "fp32" else (2,):
        for loss in (False, True):
            yield from step_cases(dtype, wide, dtypes, modalities, loss)
    yield from expand_subsets_cases(dtype, wide, dtypes)


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
        for kernel, signature, constants, options in cases(dtype):
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
