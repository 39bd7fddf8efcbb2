"""Compiles every Triton kernel for GPUs that need not be here; prints one JSON line a kernel.

Run by test_spills.py in a process of its own, since triton interprets or compiles, but not both.
"""

import json
import re
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

import expand_subsets
import modulate
import modulate_additive
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# bf16 and fp16 differ from fp32 in how numbers are loaded and stored only, on every GPU alike.
DTYPES = {
    "sm_80": ("fp32", "fp64"),
    "sm_90": ("fp32", "bf16", "fp16", "fp64"),
    "sm_100": ("fp32", "fp64"),
    "gfx942": ("fp32", "bf16", "fp16", "fp64"),
}

ROOMS = (modulate, modulate_additive, expand_subsets)


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
    for dtype in DTYPES[architecture]:
        wide = "fp64" if dtype == "fp64" else "fp32"
        accumulated = {"DTYPE": tl.float64 if dtype == "fp64" else tl.float32}
        for kernel, signature, constants, options in chain(*(room.cases(dtype, wide, accumulated) for room in ROOMS)):
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
