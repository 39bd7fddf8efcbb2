"""Wheels and the sdist, built without the network from a copy of the sources, each once a session."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("agm", "kernels", "csrc", "bench", "docs", "examples", "tests", ".ci")

Python = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment without what steers the build."""
    steering = ("AGM_BUILD", "AGM_CUDA", "CXX", "CC", "TORCH_CUDA_ARCH_LIST", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in steering}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}


@pytest.fixture(scope="session")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C++ compiler that optimises nothing and copies no function for newer processors, whatever it is told.

    What a wheel holds does not depend on that; the library that these tests load elsewhere was built as it is shipped.
    """
    path = tmp_path_factory.mktemp("compiler") / "c++"
    path.write_text('#!/bin/sh\nexec c++ "$@" -O0 -U__gnu_linux__\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a copy of the sources: what a build leaves behind stays in it."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("checkout")
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "_native.txt", ".*_cache")
        for name in SOURCES:
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def build(checkout: Callable[[], Path]) -> Callable[..., Path]:
    """Builds a wheel ("--wheel") or an sdist ("--sdist") with the given environment variables."""
    pytest.importorskip("build")
    made: dict[object, Path] = {}

    def make(kind: str, **variables: str) -> Path:
        key = (kind, *sorted(variables.items()))
        if key not in made:
            folder = checkout()
            command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", "dist"]
            environment = clean_environment(**variables)
            result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
            (made[key],) = (folder / "dist").iterdir()
        return made[key]

    return make


@pytest.fixture(scope="session")
def installed(build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Python]:
    """Installs the wheel of a build alone, and gives a Python that sees it and not this checkout."""
    made: dict[object, Path] = {}

    def install(**variables: str) -> Python:
        key = tuple(sorted(variables.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("site")
            command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "-q"]
            wheel = build("--wheel", **variables)
            subprocess.run([*command, "--target", made[key], wheel], check=True, env=clean_environment())

        def python(code: str, **more: str) -> subprocess.CompletedProcess[str]:
            # Without `site` no .pth file brings the checkout back, should agm be installed editable here.
            paths = [str(made[key]), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
            program = f"import sys; sys.path[:0] = {paths!r}\n{code}"
            command = [sys.executable, "-S", "-c", program]
            environment = clean_environment(**more)
            result = subprocess.run(command, cwd=made[key], env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
            return result

        return python

    return install
