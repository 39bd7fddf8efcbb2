"""Where an op can be served: each backend on its device, the GPU kernels on the CPU too, interpreted or emulated."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from . import building
from .building import CPU_SANITIZED, CUDA_SOURCES, EMULATED, SANITIZED
from .samples import Room

if "bench" not in sys.modules:  # as `python bench` loads it
    runpy.run_path(str(Path(__file__).parents[2] / "bench" / "__main__.py"))["load"]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The interpreter computes with numpy, which warns where a GPU gives NaN or infinity.
    for item in items:
        if "triton-cpu" in item.name:
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"))
    if SANITIZED:
        items[:] = _fewer(items)
    if not torch.cuda.is_available():  # thousands, each of which would say so
        here = Path(__file__).parent
        out = {item for item in items if item.get_closest_marker("gpu") and item.path.is_relative_to(here)}
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]


_LARGE = 40
_EVERY = 7  # coprime to the numbers of dtypes, rooms and layouts, so that some cells of each are left


def _fewer(items: list[pytest.Item]) -> list[pytest.Item]:
    """One in seven cells of large tables: under the sanitizers a call takes ten times as long."""
    tables: dict[str, list[pytest.Item]] = {}
    for item in items:
        tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left = {item for cells in tables.values() for item in (cells[::_EVERY] if len(cells) > _LARGE else cells)}
    return [item for item in items if item in left]


def pytest_collection_finish(session: pytest.Session) -> None:
    """The libraries that are needed are compiled while other tests run."""
    if session.config.option.collectonly:
        return
    parameters = [item.callspec.params for item in session.items if hasattr(item, "callspec")]
    for library in {room.library for each in parameters if isinstance(room := each.get("room"), Room)} - {None}:
        library.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under the sanitizers, a kernel that no test has run is a failure."""
    if not SANITIZED:
        return
    for library in (CPU_SANITIZED, EMULATED):
        untested = library.registered() - library.asked
        if untested or not library.asked:
            print(f"\n{library.namespace}: no test of {untested or 'anything'}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


ROOMS = [
    Room("reference", "cpu"),
    Room("cpp", "cpu"),
    Room("triton", "cpu"),
    Room("cuda", "cpu", EMULATED),
    Room("reference", "cuda"),
    Room("cuda", "cuda"),
    Room("triton", "cuda"),
]
if SANITIZED:
    ROOMS = [Room("cpp", "cpu", CPU_SANITIZED), Room("cuda", "cpu", EMULATED)]


TABLE = ("case", "shape", "layout", "dtype", "form", "concatenate", "given_joint")


@pytest.fixture(
    params=[
        pytest.param(room, id=f"{room.backend}-{room.device}", marks=[pytest.mark.gpu] * (room.device == "cuda"))
        for room in ROOMS
    ]
)
def room(request: pytest.FixtureRequest) -> Room:
    """A backend on a device; `room.op(name)` skips with the backend's own reason where it cannot serve."""
    chosen: Room = request.param
    if chosen.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if chosen.backend == "triton" and chosen.device == "cpu":
        if torch.cuda.is_available():
            pytest.skip("triton runs on the GPU here")
        # Of a table of shapes, layouts, dtypes and forms it takes every fourth diagonal, and of the drawn cases every
        # fourth one.
        table = [place for name, place in request.node.callspec.indices.items() if name in TABLE]
        if (len(table) > 1 or "case" in request.node.callspec.params) and sum(table) % 4:
            pytest.skip("the interpreter takes its time: every fourth one has to do")
    return chosen


HERE = Path(__file__).parent
# What Triton's kernels are compiled for ahead. bf16 and fp16 differ from fp32 in how numbers are loaded and stored
# only, on every GPU alike; the generations of one make differ little in how they double a register for fp64.
TARGETS = {
    "sm_80": ("fp32",),
    "sm_90": ("fp32", "bf16", "fp64"),
    "sm_100": ("fp32",),
    "gfx942": ("fp32", "fp16", "fp64"),
}


@pytest.fixture(scope="session")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The long compilations, all started at once; each test of test_spills.py waits for its own."""
    commands: dict[str, list[object]] = {}
    if importlib.util.find_spec("triton") is not None:
        commands |= {target: [sys.executable, HERE / "ahead", target, *dtypes] for target, dtypes in TARGETS.items()}
    if shutil.which("nvcc") is not None:
        flags = ["-std=c++20", "-O3", "-DUSE_CUDA", "-Xptxas=-v", "-gencode=arch=compute_90,code=sm_90"]
        includes = [f"-I{path}" for path in include_paths()]
        for source in CUDA_SOURCES:
            made = tmp_path_factory.mktemp("cuda") / "kernels.cubin"
            commands[source.name] = ["nvcc", *flags, *includes, "-cubin", source, "-o", made]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = {
        name: subprocess.Popen(list(map(str, command)), env=environment, **streams)
        for name, command in commands.items()
    }
    yield running
    for process in running.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def sanitized_session() -> Iterator[subprocess.Popen[str] | None]:
    """The tests of memory's bounds once more, on kernels that check them; in the background."""
    if building.why_not() is not None:
        yield None
        return
    selected = "(cpp-cpu or cuda-cpu) and (numbers or layouts or empty or many_classes or fuzz)"
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", "-k", selected, str(HERE)],
        env={**building.under_sanitizers(), "AGM_TEST_SANITIZED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.wait()
