"""Kernels of csrc that the tests compile once more, with other flags and under another name than agm."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from agm.ops import _library

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
EMULATOR = HERE / "emulated"

# Contraction is off as in setup.py; longjmp, which switches threads in the emulator, is not to be "fortified".
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-U_FORTIFY_SOURCE")
FLAGS_OF = {
    ".cpp": ("-fopenmp-simd",),
    ".cu": ("-xc++", "-DAGM_CUDA_KEY=CPU", "-ftls-model=local-dynamic"),
}
# Without the macro csrc/cpu/vector.h makes no copies of functions for newer processors, which take half of the time.
# Nor are they optimised, which would take longer than they run. What goes through a wrong pointer the address sanitizer
# sees; to check each pointer besides takes the compiler a tenth longer.
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,pointer-overflow,vptr",
    *("-fno-sanitize-recover=undefined", "-g1", "-O0", "-U__gnu_linux__"),
)

_pool = ThreadPoolExecutor(os.cpu_count())


@functools.cache
def compiler() -> str:
    return shutil.which(os.environ.get("CXX", "g++")) or ""


@functools.cache
def why_not() -> str | None:
    """Why nothing can be built here."""
    if not sys.platform.startswith("linux"):
        return "it is built on Linux only"
    if not compiler():
        return "there is no C++ compiler"
    macros = subprocess.run([compiler(), "-dM", "-E", "-xc++", os.devnull], capture_output=True, text=True).stdout
    return None if "__GNUC__" in macros and "__clang__" not in macros else "the C++ compiler is not GCC"


def _make(made: Path, *command: object) -> None:
    """Runs a compiler, whose last argument is to be what it makes; nothing to do where another process has made it."""
    import fcntl  # on Linux, as all of this

    partial = made.with_name(f"{made.name}.{os.getpid()}")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a slow sanitizer
    with open(made.with_name(made.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return
        result = subprocess.run([*map(str, command), str(partial)], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        partial.rename(made)


class Library:
    """Ops under a name of their own: the schemas of `agm`, or others, and the kernels of some source files."""

    def __init__(
        self,
        namespace: str,
        sources: Iterable[Path],
        flags: tuple[str, ...] = (),
        signatures: Mapping[str, str] = _library._SIGNATURES,
    ) -> None:
        self.namespace = namespace
        self.signatures = signatures
        self.sources = list(sources)
        self.flags = flags
        self.asked: set[str] = set()  # the ops that a test has asked for

    @functools.cached_property
    def _folder(self) -> Path:
        """Where all processes of a test run find what one of them has compiled."""
        flags = hashlib.sha256(" ".join(self.flags).encode()).hexdigest()[:8]
        folder = Path(os.environ["AGM_TEST_BUILDS"], f"{self.namespace}-{flags}")
        folder.mkdir(exist_ok=True)
        return folder

    @functools.cached_property
    def _objects(self) -> list[tuple[Path, Future[None]]]:
        includes = [f"-I{path}" for path in (EMULATOR, *include_paths())]
        named = ("-DUSE_CUDA", f"-DAGM_LIBRARY={self.namespace}")
        objects = []
        for source in self.sources:
            made = self._folder / f"{source.name}.o"
            flags = (*FLAGS, *self.flags, *named, *includes, *FLAGS_OF[source.suffix])
            objects.append((made, _pool.submit(_make, made, compiler(), *flags, "-c", source, "-o")))
        return objects

    def start(self) -> None:
        """Compiles in the background."""
        if why_not() is None:
            _ = self._objects

    @functools.cached_property
    def path(self) -> Path:
        """The shared library; skips where it cannot be built."""
        if (reason := why_not()) is not None:
            pytest.skip(reason)
        for _, compilation in self._objects:
            compilation.result()
        made = self._folder / f"{self.namespace}.so"
        objects = [path for path, _ in self._objects]
        torch_libraries = (*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10")
        _make(made, compiler(), "-shared", *self.flags, "-Wl,-Bsymbolic", *objects, *torch_libraries, "-o")
        return made

    @functools.cached_property
    def _loaded(self) -> torch.library.Library:
        path = self.path
        library = torch.library.Library(self.namespace, "DEF")
        for op, signature in self.signatures.items():
            library.define(op + signature, tags=(torch.Tag.pt2_compliant_tag,))
            if (fake := getattr(_library, f"_fake_{op}", None)) is not None:
                torch.library.register_fake(f"{self.namespace}::{op}", fake, lib=library)
        torch.ops.load_library(path)
        return library

    def registered(self) -> set[str]:
        """The ops that the sources have kernels of."""
        _ = self._loaded
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        return {op for op in self.signatures if has_kernel(f"{self.namespace}::{op}", "CPU")}

    def op(self, name: str) -> Any:
        """The op; skips where the sources have no kernel of it."""
        if name not in self.registered():
            pytest.skip(f"{self.namespace} has no kernel of {name}")
        self.asked.add(name)
        return getattr(getattr(torch.ops, self.namespace), name).default


# A session under the sanitizers (test_sanitizers.py) runs the tests of the ops on these two.
SANITIZED = os.environ.get("AGM_TEST_SANITIZED") == "1"
CPU_SANITIZED = Library("agm_sanitized", sorted(CSRC.glob("cpu/*.cpp")), SANITIZERS)
CUDA_SOURCES = tuple(sorted(CSRC.glob("cuda/*.cu")))
EMULATED = Library("agm_emulated", [*CUDA_SOURCES, EMULATOR / "emulator.cpp"], SANITIZERS if SANITIZED else ())


def under_sanitizers() -> dict[str, str]:
    """The environment of a Python process that loads sanitized libraries."""
    preloaded = ("libasan.so", "libstdc++.so.6")  # the sanitizer looks for the functions of the other when it starts
    found = [subprocess.check_output([compiler(), f"-print-file-name={name}"], text=True).strip() for name in preloaded]
    return {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}  # Python's own leaks
