"""Where an op can be served: each backend on its device, the GPU kernels on the CPU too, interpreted or emulated."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
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
    here = Path(__file__).parent
    tables = _tables(item for item in items if item.path.is_relative_to(here))
    left = {item for cells in tables.values() for item in _fewer(_diagonals(cells))}
    out = {item for cells in tables.values() for item in cells if item not in left}
    if not torch.cuda.is_available():  # hundreds, each of which would say so
        out |= {item for cells in tables.values() for item in cells if item.get_closest_marker("gpu")}
    config.hook.pytest_deselected(items=list(out))
    items[:] = [item for item in items if item not in out]


def _tables(items: Iterable[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """The cells of each test."""
    tables: dict[str, list[pytest.Item]] = {}
    for item in items:
        tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return tables


TABLE = ("case", "shape", "layout", "dtype", "form", "concatenate", "given_joint")


def _diagonals(cells: list[pytest.Item]) -> list[pytest.Item]:
    """The cells of a table of shapes, layouts, dtypes and forms, or of drawn cases, that a room takes.

    Of a table of three or more, as few as hold every two values together. The reference, which is torch itself whatever
    the shape and the dtype, and Triton's interpreter, which takes its time, take every fifth diagonal and every fifth
    case. Neither has a grid or threads, so that the same bits every time show nothing.
    """
    places = [_parameters(item) for item in cells]
    axes = [name for name in TABLE if name in places[0]]
    values = {name: list({id(own[name]): own[name] for own in places}) for name in axes}
    left = []
    for item, own in zip(cells, places, strict=True):
        room = own.get("room")
        if isinstance(room, Room) and room.sparse and item.name.startswith("test_same_bits"):
            continue
        if not isinstance(room, Room) or not axes:
            left.append(item)
            continue
        if room.sparse:
            every = 5 if len(axes) > 1 or "case" in axes else 1
        else:
            every = min(map(len, values.values())) if len(axes) > 2 else 1
        if sum(values[name].index(id(own[name])) for name in axes) % every == 0:
            left.append(item)
    return left


def _parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _fewer(cells: list[pytest.Item]) -> list[pytest.Item]:
    """Under the sanitizers, where a call takes ten times as long, some eight cells of each table.

    An odd step, so that some of each room, dtype and layout are left, of which there are two or four.
    """
    return cells[:: len(cells) // 8 | 1] if SANITIZED else cells


def pytest_collection_finish(session: pytest.Session) -> None:
    """The libraries that are needed are compiled while other tests run."""
    if session.config.option.collectonly:
        return
    rooms = [_parameters(item).get("room") for item in session.items]
    for library in {room.library for room in rooms if isinstance(room, Room)} - {None}:
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


@pytest.fixture(
    params=[
        pytest.param(room, id=f"{room.backend}-{room.device}", marks=[pytest.mark.gpu] * (room.device == "cuda"))
        for room in ROOMS
        if room.device == "cpu" or torch.cuda.is_available()
    ]
)
def room(request: pytest.FixtureRequest) -> Room:
    """A backend on a device; `room.op(name)` skips with the backend's own reason where it cannot serve."""
    chosen: Room = request.param
    if chosen.backend == "triton" and chosen.device == "cpu" and torch.cuda.is_available():
        pytest.skip("triton runs on the GPU here")
    return chosen


HERE = Path(__file__).parent
# What Triton's kernels are compiled for ahead. bf16 and fp16 differ from fp32 in how numbers are loaded and stored
# only, on every GPU alike; the generations of one make differ little in how they double a register for fp64.
TARGETS = {
    "sm_80": ("fp32",),
    "sm_90": ("fp32", "bf16", "fp64"),
    "sm_100": ("fp32",),
    "gfx942": ("fp32", "fp64"),
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
    selected += " and (batch_norm or not bfloat16)"  # which lies in memory as float16 does
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
