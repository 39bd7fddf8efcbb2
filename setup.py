"""Builds agm: pure Python everywhere, and the native library `agm._C` where torch and a C++ compiler are.

AGM_BUILD=auto  the native library if it can be built, else pure Python (`agm.backends()` tells why)
AGM_BUILD=0     pure Python
AGM_BUILD=1     the native library, or an error with the cause
AGM_CUDA=auto   its CUDA kernels if torch was built for CUDA and nvcc is there; a GPU is not asked for
AGM_CUDA=0      none
AGM_CUDA=1      CUDA kernels, or an error with the cause

An isolated build (`pip install .`) has no torch and makes pure Python: add `--no-build-isolation`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_py import build_py

REASON = "_native.txt"  # written into the package: why there is no agm._C, or why it has no CUDA kernels
CUDA_ARCHITECTURES = "7.5;8.0;9.0"


def choice(variable: str) -> str:
    value = os.environ.get(variable, "auto")
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"Expected {variable} to be 0, 1 or auto, but got {value!r}.")
    return value


def why_no_toolchain() -> str | None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return (
            f"torch could not be imported during the build ({error}): install torch first (for a CPU from "
            "https://download.pytorch.org/whl/cpu), then agm-torch with --no-build-isolation"
        )
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if os.name != "nt" and (not compiler or shutil.which(compiler[0]) is None):
        return f"no C++ compiler: {' '.join(compiler)!r} is not there (set CXX)"
    return None


def find_cuda_home() -> None:
    """Sets CUDA_HOME to the folder of the toolkit.

    torch takes the folder above nvcc for it, which is wrong where that is a script that calls another nvcc.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    folder = re.search(r"^#\$ _HERE_=(.+)$", said.stdout + said.stderr, re.MULTILINE)
    if folder is not None and Path(folder[1]).name == "bin":
        os.environ["CUDA_HOME"] = str(Path(folder[1]).parent)


def why_no_cuda() -> str | None:
    import torch

    find_cuda_home()  # before torch looks for it, which it does when the next module is imported
    from torch.utils.cpp_extension import CUDA_HOME

    if not torch.version.cuda:
        return f"torch {torch.__version__} was built without CUDA"
    if CUDA_HOME is None:
        return "nvcc was not found: set CUDA_HOME"
    return None


def extension(cuda: bool) -> Extension:
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    sources = ["csrc/module.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
    # Contraction would round equal responses differently and so break ties (csrc/common/arithmetic.h). A square root
    # that sets errno is a call, which keeps its loop from becoming vector instructions.
    flags = ["-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fopenmp-simd"]
    options = {"cxx": [] if os.name == "nt" else flags}
    if not cuda:
        return CppExtension("agm._C", sources, extra_compile_args=options)

    # Without a list torch would ask the GPUs of this machine, which may have none.
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        blackwell = tuple(map(int, torch.version.cuda.split(".")[:2])) >= (12, 8)
        os.environ["TORCH_CUDA_ARCH_LIST"] = CUDA_ARCHITECTURES + (";10.0+PTX" if blackwell else "+PTX")
    return CUDAExtension(
        "agm._C",
        sources + sorted(map(str, Path("csrc/cuda").glob("*.cu"))),
        define_macros=[
            ("USE_CUDA", None),
            ("AGM_CUDA_ARCHITECTURES", f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"'),
        ],
        extra_compile_args={**options, "nvcc": ["-O3"]},
    )


def record(command: Command, reason: str | None) -> None:
    """Leaves the reason for a missing agm._C, or for missing CUDA kernels in it, where `agm.backends()` reads it."""
    in_place = getattr(command, "editable_mode", False) or getattr(command, "inplace", False)
    package = Path("agm") if in_place else Path(command.build_lib, "agm")
    if reason is None:
        (package / REASON).unlink(missing_ok=True)
    else:
        package.mkdir(parents=True, exist_ok=True)
        (package / REASON).write_text(reason + "\n", encoding="utf-8")


def native(required: bool) -> dict[str, object]:
    """The arguments of `setup` that build agm._C."""
    cuda = choice("AGM_CUDA")
    reason = "AGM_CUDA=0" if cuda == "0" else why_no_cuda()
    if cuda == "1" and reason is not None:
        raise SystemExit(f"AGM_CUDA=1, but {reason}.")

    from torch.utils.cpp_extension import BuildExtension

    class BuildNative(BuildExtension):
        def run(self) -> None:
            without_cuda = reason
            try:
                if reason is None:
                    without_cuda = self.with_cuda()
                if without_cuda is not None:
                    super().run()
            except Exception as error:
                if required:
                    raise
                # A library left from an earlier build would not match these sources.
                Path(self.get_ext_fullpath("agm._C")).unlink(missing_ok=True)
                record(self, f"the C++ build failed ({error}): install with AGM_BUILD=1 to see why")
                print(f"agm: no native library, since its build failed: {error}", file=sys.stderr)
            else:
                record(self, without_cuda)

        def with_cuda(self) -> str | None:
            """Builds all; where that fails, says why, and prepares the build of the C++ part alone."""
            try:
                super().run()
                return None
            except Exception as error:
                if cuda == "1":
                    raise
                print(f"agm: no CUDA kernels, since their build failed: {error}", file=sys.stderr)
                shutil.rmtree(self.build_temp, ignore_errors=True)
                self.distribution.ext_modules = [extension(cuda=False)]
                kept = {name: getattr(self, name) for name in ("build_lib", "build_temp", "inplace", "editable_mode")}
                self.reinitialize_command("build_ext", **kept)
                self.ensure_finalized()
                return f"the CUDA build failed ({error}): install with AGM_CUDA=1 to see why"

    return {"ext_modules": [extension(reason is None)], "cmdclass": {"build_ext": BuildNative}}


def pure(reason: str) -> dict[str, object]:
    """The arguments of `setup` that leave agm._C out."""

    class BuildPure(build_py):
        def run(self) -> None:
            super().run()
            record(self, reason)
            print(f"agm: no native library: {reason}", file=sys.stderr)

    return {"cmdclass": {"build_py": BuildPure}}


def build_arguments() -> dict[str, object]:
    build = choice("AGM_BUILD")
    forced = [f"{name}=1" for name in ("AGM_BUILD", "AGM_CUDA") if choice(name) == "1"]
    reason = "it was installed with AGM_BUILD=0" if build == "0" else why_no_toolchain()
    if reason is None:
        return native(required=bool(forced))
    if forced:
        raise SystemExit(f"{forced[0]}, but {reason}.")
    return pure(reason)


setup(
    py_modules=["_agm_command"],
    packages=[
        "agm",
        "agm._inputs",
        "agm._lazy_rows",
        "agm._module_state",
        "agm._one_pass",
        "agm._passes",
        "agm.competition",
        "agm.data",
        "agm.data.builders",
        "agm.data.layouts",
        "agm.federated",
        "agm.integrations",
        "agm.kernels",
        "agm.models",
        "agm.modulation",
        "agm.ops",
        "agm.ops.reference",
        "agm.shapley",
        "agm.strategies",
        "agm.training",
        "agm.training.commands",
        "agm.training.report",
        "agm.training.study",
        "agm.verification",
    ],
    # The folder kernels/ stays at the top, but nothing of that name lands in site-packages.
    package_dir={"agm": "agm", "agm.kernels": "kernels"},
    package_data={
        "agm": ["py.typed"],
        "agm.data": ["*.npz", "licenses/*"],
        "agm.strategies": ["README.md"],
        "agm.training.report": ["templates/*"],
    },
    include_package_data=False,
    **build_arguments(),
)
