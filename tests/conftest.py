import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# triton reads this when it is first imported, by whatever test; with a GPU its kernels run there instead.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# On tensors of this size threads mostly wait for each other, and kernels are compiled beside the tests. Those that are
# about threads set their number themselves.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Where the libraries that tests compile are; the processes that the tests are shared out to inherit it."""
    if "AGM_TEST_BUILDS" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="agm-tests-")
        os.environ["AGM_TEST_BUILDS"] = folder.name
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop("AGM_TEST_BUILDS"))


# Builds, processes of their own, long trainings: what lies there is slow, and the rest is fast unless it is marked.
_SLOW = (
    "bench",
    "clients",
    "competition/test_sanity.py",
    "data",
    "distributed",
    "documentation/test_code_blocks.py",
    "engine/test_capture.py",
    "engine/test_long_runs.py",
    "faults",
    "federated",
    "integrations",
    "one_pass/test_choice",
    "ops",
    "packaging",
    "passes/test_compiled_",
    "training",
)

# In the name of a test that compiles, which takes seconds each time.
_COMPILES = ("compil", "without_graph_breaks")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only fast tests are asked for, slow files are not even read."""
    place = collection_path.relative_to(Path(__file__).parent).as_posix()
    return True if config.option.markexpr == "fast" and place.startswith(_SLOW) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is fast or slow: `make test-fast` runs the former, under 90 seconds on two cores."""
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        compiles = any(word in item.nodeid.partition("::")[2].lower() for word in _COMPILES)
        slow = compiles or place.startswith(_SLOW) or item.get_closest_marker("slow") is not None
        item.add_marker(pytest.mark.slow if slow else pytest.mark.fast)


class _NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "aten.equal"))
        return func(*args, **kwargs or {})


@pytest.fixture
def no_reads() -> TorchDispatchMode:
    """Inside, nothing may read a value from the device."""
    return _NoReads()


@pytest.fixture
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written without arranging their parts, which takes half of the time of a short run."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    save = figure.savefig

    def plain(self: Any, *arguments: Any, **settings: Any) -> None:
        self.set_layout_engine("none")
        save(self, *arguments, **settings)

    monkeypatch.setattr(figure, "savefig", plain)
