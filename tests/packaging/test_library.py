"""The native library, as it lies here: what it needs of the machine that loads it, and what it was compiled for."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from agm.ops import _library
from bench import sass

# What torch's own wheels need, or torch itself brings: nothing else may be missing where torch runs.
LIBRARIES = re.compile(
    r"lib(c10|torch|torch_cpu|torch_python|c10_cuda|torch_cuda|cudart|stdc\+\+|gcc_s|m|c|pthread|dl|rt)\.so[.\d]*"
    r"|ld-linux-\S+"
)
GLIBC = (2, 34)  # RHEL 9, Ubuntu 22.04, Debian 12
GLIBCXX = (3, 4, 30)  # GCC 12's
# Of torch nothing but its stable ABI: then one binary serves several versions.
STABLE = re.compile(r"(aoti_torch|torch)_\w+")
OTHERS = re.compile(r"_?Py\w+|cuda[A-Z]\w+|__cuda\w+")


@pytest.fixture(scope="module")
def library() -> Path:
    if _library.native_error is not None:
        pytest.skip(_library.native_error)
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    from agm import _C

    return Path(_C.__file__)


def said(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def undefined(library: Path) -> dict[str, tuple[bool, str]]:
    """Symbol -> whether it may be missing, and the version of it that is needed."""
    rows = [line.split() for line in said("readelf", "--dyn-syms", "--wide", library).splitlines()]
    names = {row[7]: row[4] == "WEAK" for row in rows if len(row) > 7 and row[6] == "UND"}
    return {name.partition("@")[0]: (weak, name.partition("@")[2]) for name, weak in names.items()}


def test_it_needs_what_torch_needs(library: Path) -> None:
    text = said("readelf", "--dynamic", "--wide", library)
    needed = re.findall(r"\(NEEDED\).*\[(\S+)\]", text)
    assert [name for name in needed if LIBRARIES.fullmatch(name) is None] == []
    assert "libc10.so" in needed
    assert re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", text) == []  # folders of the machine that built it
    versions = said("readelf", "--version-info", "--wide", library)
    for name, newest in {"GLIBC": GLIBC, "GLIBCXX": GLIBCXX}.items():
        found = {tuple(map(int, number.split("."))) for number in re.findall(rf"\b{name}_([\d.]+)", versions)}
        assert found, name
        assert max(found) <= newest, name


def test_no_symbol_is_undefined_and_torchs_are_stable(library: Path) -> None:
    found = undefined(library)
    assert "torch_call_dispatcher" in found
    folder = Path(torch.__file__).parent / "lib"
    of_torch = [ctypes.CDLL(str(path)) for path in folder.glob("libtorch_c*.so")]  # for CPUs, and for CUDA
    of_cpp = ctypes.CDLL("libstdc++.so.6")
    for name, (weak, version) in found.items():
        # What has a version is of a C or C++ runtime, and checked above; Python's are in the program that loads it.
        if weak or version or OTHERS.fullmatch(name) or hasattr(of_cpp, name):
            continue
        assert STABLE.fullmatch(name), name
        assert any(hasattr(each, name) for each in of_torch), name


def test_it_has_code_for_the_architectures_that_it_names(library: Path) -> None:
    from agm import _C

    architectures = _C.build_info()["architectures"]
    if not architectures:
        pytest.skip("it was built without CUDA")
    cuobjdump = sass.tool("cuobjdump")
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump")
    named = {each.removesuffix("+PTX").replace(".", "") for each in re.split(r"[; ]+", architectures)}
    assert set(re.findall(r"\.sm_(\d+)\w*\.cubin", said(cuobjdump, "--list-elf", library))) == named
    if "+PTX" in architectures:
        assert said(cuobjdump, "--list-ptx", library).strip()
