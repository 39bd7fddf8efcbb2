"""Compiles every Triton kernel for GPUs that need not be here; prints one JSON line a kernel.

Run by test_spills.py in a process of its own, since triton interprets or compiles, but not both.
"""

import json
import re
import runpy
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

import batch_norm_rows
import expand_subsets
import modulate
import modulate_additive
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

runpy.run_path(str(Path(__file__).parents[3] / "bench" / "__main__.py"))["load"]()
from bench import sass  # noqa: E402

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FEW_MODALITIES = ("sm_80", "sm_100")
SCORING = ("_score", "_score_shares")
THREADS = 128  # four warps, which is what triton takes
ROOMS = (modulate, modulate_additive, expand_subsets, batch_norm_rows)


def cubin_report(cubin: bytes, scored: dict[str, int] | None) -> dict[str, float]:
    """Of a kernel that has no arrays of its own, so that its stack holds nothing but spilt registers.

    Args:
        cubin: the kernel.
        scored: the constants of one that scores: then also the instructions of its loop over the classes, for one
            class of one sample, and those of them that compute in float64.
    """
    import triton.backends.nvidia

    tool = next(Path(triton.backends.nvidia.__file__).parent.glob("bin/cuobjdump*"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dumped(option: str) -> str:
            command = [tool, option, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", dumped("-res-usage")).groups()
        report = {"registers": int(registers), "spills": int(stack)}
        if scored is not None:
            loop = sass.class_loop(sass.instructions(dumped("-sass")), scored["ROWS"])
            classes = scored.get("SAMPLES", 1) * scored["CLASSES"] / THREADS  # of a thread
            report |= {"per_class": len(loop) / classes, "wide": sass.wide(loop)}
    return report


def amdgcn_report(assembly: str) -> dict[str, int]:
    return {
        "registers": int(re.search(r"\.vgpr_count:\s+(\d+)", assembly)[1]),
        # Scalar registers spill into lanes of vector registers, not into memory.
        "spills": int(re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)[1]),
    }


def main(architecture: str, *dtypes: str) -> None:
    target = TARGETS[architecture]
    for dtype in dtypes:
        wide = "fp64" if dtype == "fp64" else "fp32"
        accumulated = {"DTYPE": tl.float64 if dtype == "fp64" else tl.float32}
        for kernel, signature, constants, options in chain(*(room.cases(dtype, wide, accumulated) for room in ROOMS)):
            # What many modalities take differs between makes, and little between generations of one.
            if architecture in FEW_MODALITIES and max(constants.get(name, 2) for name in ("MODALITIES", "PADDED")) > 2:
                continue
            signature = {**signature, **dict.fromkeys(constants, "constexpr")}
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            binary = triton.compile(source, target=target, options=options)
            if target.backend == "cuda":
                scores = architecture == "sm_90" and dtype != "fp64" and kernel.__name__ in SCORING
                # With more modalities the loop over the subsets is one, and its instructions are run many times.
                scores = scores and constants["ROWS"] == 3
                report = cubin_report(binary.asm["cubin"], constants if scores else None)
            else:
                report = amdgcn_report(binary.asm["amdgcn"])
            constants = {name: str(constant) for name, constant in constants.items()}
            report |= {"specialised": [each.name for each in kernel.params if not each.do_not_specialize]}
            print(json.dumps({"kernel": kernel.__name__, "dtype": dtype, "constants": constants, **report}))


if __name__ == "__main__":
    main(*sys.argv[1:])
