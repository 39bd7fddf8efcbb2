"""The machine code of the CUDA kernels, read where nvcc is: no GPU is needed.

Of each kernel of the modulation: registers, blocks that a multiprocessor holds, and the instructions of its loop over
the classes, for one class of one sample. From these, how much of a GPU's copy bandwidth the kernel can use at most,
as far as issuing instructions and computing exponentials limit it. That is a prediction, not a measurement.
"""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.rows import ROOT

SOURCES = ("modulate", "modulate_cross_entropy")
SIZES = {"float": 4, "BFloat16": 2, "Half": 2}
THREADS = 256  # of a block
REGISTERS = 65536  # of a multiprocessor


@dataclass(frozen=True)
class Gpu:
    """Multiprocessors, clock (Hz) and the bandwidth of a copy (bytes a second), as the vendor and its users report."""

    multiprocessors: int
    clock: float
    bandwidth: float


GPUS = {"H100": Gpu(132, 1.98e9, 3.0e12), "H200": Gpu(132, 1.98e9, 4.3e12)}
EFFICIENCY = 0.65  # of the issue slots, with the few warps that fit


@dataclass(frozen=True)
class Kernel:
    """What is read of one kernel.

    Attributes:
        name: the kernel's, without namespaces.
        dtype, modalities, width, loss: what it was compiled for; `width` classes are loaded at once.
        peeled: rows need not be aligned: what lies before the first pack and behind the last is loaded by itself.
        registers: a thread's.
        per_class: instructions of the loop over the classes, for one class.
        loads: those of them that read the global memory.
        exponentials: those of them that the unit for special functions executes.
        divisions: conversions, products and reciprocals of float64 in that loop.
    """

    name: str
    dtype: str
    modalities: int
    width: int
    loss: bool
    peeled: bool
    registers: int
    per_class: float
    loads: tuple[str, ...]
    exponentials: float
    divisions: int

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor has registers for: they are given out to a warp by the 256."""
        return REGISTERS // (-(-self.registers * 32 // 256) * 256 * THREADS // 32)

    def share(self, gpu: Gpu) -> float:
        """The most of the copy bandwidth that instructions leave; 1 where memory alone limits."""
        bytes_of_class = SIZES[self.dtype] * (2**self.modalities - 1)
        a_second = gpu.multiprocessors * gpu.clock
        slots = EFFICIENCY * 128 * a_second / self.per_class
        special = 16 * a_second / self.exponentials
        return min(1.0, min(slots, special) * bytes_of_class / gpu.bandwidth)


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, wherever it is; None where there is none."""
    if (found := shutil.which(name)) is not None:
        return found
    try:
        import triton.backends.nvidia
    except ImportError:
        return None
    return next(map(str, Path(triton.backends.nvidia.__file__).parent.glob(f"bin/{name}*")), None)


def compiled(source: str, folder: Path) -> Path:
    """csrc/cuda/SOURCE.cu as machine code for sm_90."""
    from torch.utils.cpp_extension import include_paths

    made = folder / f"{source}.cubin"
    flags = ["-std=c++20", "-O3", "-DUSE_CUDA", "-gencode=arch=compute_90,code=sm_90", "-cubin"]
    includes = [f"-I{path}" for path in include_paths()]
    command = ["nvcc", *flags, *includes, str(ROOT / "csrc" / "cuda" / f"{source}.cu"), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return made


def disassembled(path: Path) -> str:
    """The code and the resource usage of an object or cubin."""
    cuobjdump = tool("cuobjdump")
    assert cuobjdump is not None
    texts = (
        subprocess.run([cuobjdump, option, str(path)], check=True, capture_output=True, text=True).stdout
        for option in ("-sass", "-res-usage")
    )
    return "\n".join(texts)


_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);")
_PREDICATE = re.compile(r"^@!?U?P\w+ ")
# score_by_warps<float, 2, 4, false, false>, mangled
_NAME = re.compile(r"(score_by_warps|score_by_blocks)I(f|d|N3c104HalfE|N3c108BFloat16E)Li(\d)ELi(\d)ELb(\d)ELb(\d)E")
_DTYPES = {"f": "float", "N3c104HalfE": "Half", "N3c108BFloat16E": "BFloat16"}


def kernels(text: str) -> Iterator[Kernel]:
    """The kernels that score, from what `disassembled` gives."""
    registers = dict(re.findall(r"Function (\w+):\s+REG:(\d+)", text))
    for part in re.split(r"\n\s*Function : ", text)[1:]:
        symbol, body = part.split("\n", 1)
        found = _NAME.search(symbol)
        if found is None or found[2] == "d":  # float64 is not made to be fast
            continue
        name, dtype, modalities, width, loss, peeled = found.groups()
        loop = class_loop(instructions(body), 2 ** int(modalities) - 1, int(width))
        operations = Counter(code.split()[0].split(".")[0] for code in loop)
        yield Kernel(
            name,
            _DTYPES[dtype],
            int(modalities),
            int(width),
            loss == "1",
            peeled == "1",
            int(registers[symbol.strip()]),
            len(loop) / int(width),
            tuple(load for load in (each.split()[0] for each in loop) if load.startswith("LDG")),
            operations["MUFU"] / int(width),
            wide(loop),
        )


def instructions(body: str) -> list[tuple[int, str]]:
    """(address, code) of the instructions of a kernel, without the predicates under which they run."""
    return [(int(at, 16), _PREDICATE.sub("", code.strip())) for at, code in _INSTRUCTION.findall(body)]


def wide(loop: list[str]) -> int:
    """Conversions, products and reciprocals of float64."""
    names = ("I2F.F64", "F2F.F32.F64", "F2F.F64", "DFMA", "DADD", "DMUL", "MUFU.RCP64H")
    return sum(code.startswith(names) for code in loop)


def least_seconds(per_class: float, size: int, modalities: int, batch: int, classes: int, gpu: Gpu) -> float:
    """What a kernel that scores takes at least: to move its bytes or to issue its instructions, whichever is longer.

    A prediction, of large batches; small ones wait for memory and for the host, and more so where a launch is made in
    Python.

    Args:
        per_class: instructions for one class of one sample.
        size: bytes of a logit.
        modalities, batch, classes: of the masked logits.
        gpu: where.
    """
    slots = EFFICIENCY * 128 * gpu.multiprocessors * gpu.clock
    moved = (2**modalities - 1) * batch * classes * size
    return max(moved / gpu.bandwidth, batch * classes * per_class / slots)


def class_loop(instructions: list[tuple[int, str]], subsets: int, width: float = float("inf")) -> list[str]:
    """The innermost loop that loads once from every subset, and computes most exponentials; with class weights if it
    can, which are a load each; or the first of such.

    The one for what is no number computes some too, and comes last in the code; that of single classes computes fewer.
    One over the samples may have no loop in it that is closed by a jump back, but loads over `width` more.
    """
    index = {at: i for i, (at, _) in enumerate(instructions)}

    def count(loop: tuple[int, int], name: str) -> int:
        return sum(code.startswith(name) for _, code in instructions[loop[0] : loop[1] + 1])

    loops = []
    for end, (_, code) in enumerate(instructions):
        target = re.match(r"BRA\S*\s.*?(0x[0-9a-f]+)", code)
        if target is None or (begin := index.get(int(target[1], 16))) is None or begin > end:
            continue
        if count((begin, end), "MUFU.EX2") and subsets <= count((begin, end), "LDG") <= subsets + width:
            loops.append((begin, end))

    innermost = [
        (begin, end)
        for begin, end in loops
        if not any((begin, end) != other and begin <= other[0] and other[1] <= end for other in loops)
    ]
    begin, end = max(innermost, key=lambda loop: (count(loop, "MUFU.EX2"), count(loop, "LDG"), -loop[0]))
    return [code for _, code in instructions[begin : end + 1]]


def main() -> int:
    """Prints a line a kernel; returns the exit status."""
    if shutil.which("nvcc") is None or tool("cuobjdump") is None:
        print("nvcc and cuobjdump are needed: install the CUDA toolkit.")
        return 2
    columns = " ".join(f"{'of a copy, ' + name:>16}" for name in GPUS)
    print(f"{'kernel (sm_90)':44} {'registers':>9} {'blocks':>6} {'instructions a class':>20} {columns}")
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            for kernel in kernels(disassembled(compiled(source, Path(folder)))):
                name = f"{kernel.name.removeprefix('score_')} {kernel.dtype} M={kernel.modalities}"
                name += " with the loss" if kernel.loss else ""
                name += " peeled" if kernel.peeled else ""
                shares = " ".join(f"{kernel.share(gpu):>15.0%} " for gpu in GPUS.values())
                print(f"{name:44} {kernel.registers:9} {kernel.blocks:6} {kernel.per_class:20.1f} {shares}")
    print(f"of a copy: at most, computed for {EFFICIENCY:.0%} of the issue slots; not measured")
    return 0
