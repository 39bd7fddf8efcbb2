"""What is in the wheel and in the sdist, and what an installation without a compiler can do."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, Python, clean_environment

Build = Callable[..., Path]
Install = Callable[..., Python]


def shipped_files() -> set[str]:
    """Every file of the package and of the command, by its installed name."""
    rooms = [(ROOT / "agm", "agm"), (ROOT / "kernels", "agm/kernels")]
    files = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for folder, name in rooms
        for path in folder.rglob("*")
        if path.is_file()
    }
    left_out = ("__pycache__", ".so", ".pyd", "_native.txt", "_cache")
    return {"_agm_command.py", *(file for file in files if not any(part in file for part in left_out))}


def wheel_files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_pure_wheel_holds_the_package_and_nothing_else(build: Build) -> None:
    wheel = build("--wheel", AGM_BUILD="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    files = wheel_files(wheel)
    package = {file for file in files if ".dist-info/" not in file}
    assert package == shipped_files() | {"agm/_native.txt"}
    assert "agm/py.typed" in package
    assert any(file.endswith("dist-info/licenses/LICENSE") for file in files)
    # A top-level `kernels` in site-packages would shadow another project's package of that name.
    top = next(file for file in files if file.endswith("top_level.txt"))
    assert zipfile.ZipFile(wheel).read(top).decode().split() == ["_agm_command", "agm"]


def test_sdist_can_build_everything(build: Build) -> None:
    sdist = build("--sdist", AGM_BUILD="0")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        path.relative_to(ROOT).as_posix()
        for room in ("csrc", "kernels", "agm", "tests")
        for path in (ROOT / room).rglob("*")
        if path.suffix in {".cpp", ".cu", ".h", ".py", ".npz", ".typed", ".html", ".css"}
    }
    assert sources - files == set()
    assert {"Makefile", "requirements.txt", "requirements-test.txt", "README.md", "LICENSE", ".ci/run"} <= files
    assert {
        "_agm_command.py",
        "setup.py",
        "build_backend.py",
        "pyproject.toml",
        "MANIFEST.in",
        "LICENSE",
        "README.md",
    } <= files
    assert not [name for name in files if name.endswith((".so", ".pyc", "_native.txt"))]


def test_import_is_light(installed: Install) -> None:
    """Importing agm needs none of the extras, and none of them slows it down."""
    heavy = ["triton", "matplotlib", "scipy", "sklearn", "click", "rich", "tomli_w", "lightning", "accelerate"]
    code = f"""
import torch
before = set(sys.modules)
import agm, agm.ops
print([name for name in {heavy!r} if name in sys.modules and name not in before])
"""
    assert installed(AGM_BUILD="0")(code).stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="triton is for Linux")
def test_kernels_are_importable_from_the_wheel(installed: Install) -> None:
    pytest.importorskip("triton")
    code = """
import agm.kernels.modulate as room
print(room.modulate_backward.__module__, room.__file__)
"""
    name, path = installed(AGM_BUILD="0")(code, TRITON_INTERPRET="1").stdout.split()
    assert name == "agm.kernels.modulate"
    assert Path(path).is_relative_to(Path(path).parents[2])
    assert not Path(path).is_relative_to(ROOT)


SERVICES = """
import torch
from agm import ops
print({service.op: (service.backend, service.unavailable.get("cpp")) for service in ops.backends()
       if service.device == "cpu"})
scales = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
print(ops.modulate_backward(torch.ones(1, 1), scales).flatten().tolist())
"""


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"AGM_BUILD": "0"}, "it was installed with AGM_BUILD=0"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler: 'no-such-compiler' is not there"),
        ({"CXX": "false"}, "the C++ build failed"),
    ],
    ids=["refused", "no compiler", "broken compiler"],
)
def test_installs_without_a_compiler_and_says_so(installed: Install, variables: dict[str, str], reason: str) -> None:
    if shutil.which("false") is None:
        pytest.skip("there is no program that fails")
    services, numbers = installed(**variables)(SERVICES).stdout.splitlines()
    assert numbers == "[0.0, 0.5, 1.0]"
    for backend, why_not_cpp in eval(services).values():
        assert backend == "reference"
        assert why_not_cpp.startswith(f"agm._C is not built: {reason}")


def test_native_wheel(build: Build, installed: Install, quick_compiler: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    variables = {"AGM_BUILD": "1", "AGM_CUDA": "0", "CXX": str(quick_compiler)}
    files = wheel_files(build("--wheel", **variables))
    (library,) = [file for file in files if "/_C." in file]
    assert library.startswith("agm/_C.")
    note = {"agm/_native.txt"}  # why there are no CUDA kernels
    assert {file for file in files if ".dist-info/" not in file} == shipped_files() | {library} | note
    services, numbers = installed(**variables)(SERVICES).stdout.splitlines()
    assert eval(services)["modulate_backward"] == ("cpp", None)
    assert numbers == "[0.0, 0.5, 1.0]"
    cuda = installed(**variables)("import agm; print([s for s in agm.backends() if s.device == 'cuda'][0])").stdout
    assert "cuda: agm._C was built without a CUDA kernel of modulate (AGM_CUDA=0)" in cuda
    code = "from agm import _C; info = _C.build_info(); print(info['torch'], info['cuda'], bool(info['cxx']))"
    version = torch.__version__.partition("+")[0]
    assert installed(**variables)(code).stdout.split() == [version, "None", "True"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AGM_BUILD": "1", "CXX": "no-such-compiler"}, "AGM_BUILD=1, but no C++ compiler: 'no-such-compiler'"),
        ({"AGM_BUILD": "0", "AGM_CUDA": "1"}, "AGM_CUDA=1, but it was installed with AGM_BUILD=0"),
        ({"AGM_BUILD": "yes"}, "Expected AGM_BUILD to be 0, 1 or auto, but got 'yes'"),
        pytest.param(
            {"AGM_CUDA": "1"},
            "was built without CUDA",
            marks=pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA"),
        ),
    ],
    ids=["no compiler", "contradiction", "no such choice", "no CUDA"],
)
def test_what_was_forced_fails_with_its_cause(
    checkout: Callable[[], Path], variables: dict[str, str], message: str
) -> None:
    command = [sys.executable, "setup.py", "--version"]
    environment = clean_environment(**variables)
    result = subprocess.run(command, cwd=checkout(), env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert message in result.stderr


def test_build_without_torch_is_pure(checkout: Callable[[], Path]) -> None:
    """An isolated build has no torch: the wheel is pure, and the package says how to get the native one."""
    folder = checkout()
    (folder / "torch.py").write_text("raise ImportError('hidden')")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "out"]
    environment = clean_environment(PYTHONPATH=str(folder))
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    note = (folder / "out/agm/_native.txt").read_text()
    assert note.startswith("torch could not be imported during the build (hidden): install torch first")
    assert "--no-build-isolation" in note


BACKEND = """
import sys
sys.path.insert(0, {folder!r})
{before}
import build_backend
print(build_backend.build_wheel.__module__)
"""


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("sys.modules['setuptools'] = None", "none"),
        ("import types; sys.modules['setuptools'] = types.SimpleNamespace(__version__='65.5.0')", "65.5.0"),
        ("", ""),
    ],
    ids=["none", "an old one", "a fitting one"],
)
def test_what_a_build_needs_is_said_in_a_sentence(before: str, found: str) -> None:
    code = BACKEND.format(folder=str(ROOT), before=before)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if not found:
        assert result.stdout.strip() == "setuptools.build_meta", result.stderr
        return
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"Expected setuptools 77 or newer to build agm-torch, but got {found}. "
        "Install it first: pip install 'setuptools>=77' wheel"
    )


WITHOUT_CUDA = """
why_no_cuda = lambda: None


def extension(cuda):
    return Extension("agm._C", ["broken.cpp" if cuda else "whole.cpp"])


setup(
    name="x",
    packages=["agm"],
    script_args=["-q", "build_ext", "--build-lib", "out", "--build-temp", "objects"],
    **native(required=choice("AGM_CUDA") == "1"),
)
"""


def test_where_the_cuda_part_does_not_build_the_rest_is_built_without_it(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    (tmp_path / "agm").mkdir()
    (tmp_path / "agm" / "__init__.py").touch()
    (tmp_path / "broken.cpp").write_text("#error no such architecture\n")
    (tmp_path / "whole.cpp").write_text("int whole() { return 1; }\n")
    source = (ROOT / "setup.py").read_text(encoding="utf-8").partition("\nsetup(\n")[0]
    command = [sys.executable, "-c", source + WITHOUT_CUDA]
    environment = clean_environment()
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert list((tmp_path / "out" / "agm").glob("_C.*"))
    note = (tmp_path / "out" / "agm" / "_native.txt").read_text()
    assert note.startswith("the CUDA build failed (")
    assert "AGM_CUDA=1 to see why" in note
    assert "agm: no CUDA kernels, since their build failed" in made.stderr
    forced = subprocess.run(command, cwd=tmp_path, env=clean_environment(AGM_CUDA="1"), capture_output=True, text=True)
    assert forced.returncode != 0


@pytest.mark.parametrize("wrapped", [False, True], ids=["the toolkit's own", "a wrapper"])
def test_the_cuda_toolkit_is_found_behind_its_compiler(tmp_path: Path, wrapped: bool) -> None:
    """torch takes the folder above nvcc for the toolkit, which is wrong where nvcc is a script that calls another."""
    toolkit, elsewhere = tmp_path / "cuda-13.0", tmp_path / "local"
    for folder in (toolkit / "bin", elsewhere / "bin"):
        folder.mkdir(parents=True)
    compiler = toolkit / "bin" / "nvcc"
    compiler.write_text(f"#!/bin/sh\necho '#$ _SPACE_= ' >&2\necho '#$ _HERE_={toolkit}/bin' >&2\n")
    wrapper = elsewhere / "bin" / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@"\n')
    for program in (compiler, wrapper):
        program.chmod(0o755)
    source = (ROOT / "setup.py").read_text(encoding="utf-8").partition("\nsetup(\n")[0]
    code = f"{source}\nfind_cuda_home()\nprint(os.environ['CUDA_HOME'])"
    environment = clean_environment(PATH=f"{(elsewhere if wrapped else toolkit) / 'bin'}:/usr/bin:/bin")
    environment = {name: value for name, value in environment.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert made.stdout.split() == [str(toolkit)]
