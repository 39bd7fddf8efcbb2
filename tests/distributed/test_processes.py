"""What processes that train together compute, with two and with four of them, is what one does by itself."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import agm

from .checks import CHECKS, CHECKS_OF_TWO

EXAMPLES = Path(__file__).parents[2] / "examples"


def _check(outcomes: Callable[[int], dict[str, list[str]]], size: int, check: str) -> None:
    wrong = {rank: text for rank, text in enumerate(outcomes(size)[check]) if text}
    assert not wrong, "\n".join(f"process {rank}: {text}" for rank, text in wrong.items())


@pytest.mark.parametrize(
    ("size", "check"),
    [(size, name) for size, names in ((4, CHECKS), (2, CHECKS_OF_TWO)) for name in names if not name.endswith("gpu")],
)
def test_processes(outcomes: Callable[[int], dict[str, list[str]]], size: int, check: str) -> None:
    _check(outcomes, size, check)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's SyncBatchNorm needs a GPU, and there is none")
def test_synchronised_norms_on_a_gpu(outcomes: Callable[[int], dict[str, list[str]]]) -> None:
    _check(outcomes, 2, "synchronised_norms_on_a_gpu")


@pytest.mark.parametrize("group", ["gloo", True, -100])
def test_wrong_groups(group: object) -> None:
    state = agm.ModulationState(2)
    rows, target = torch.randn(3, 2, 4), torch.tensor([0, 1])
    calls: list[Callable[[], object]] = [
        lambda: agm.Modulator(("a", "b"), process_group=group),
        lambda: agm.AGM(torch.nn.Bilinear(2, 2, 2), ("input1", "input2"), process_group=group),
        lambda: agm.fused_modulate(rows, target, state, process_group=group),
        lambda: agm.fused_modulate_cross_entropy(rows, target, state, process_group=group),
        lambda: agm.fused_modulate_additive(rows[:2], rows[:2, 0], target, state, process_group=group),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="Expected argument `process_group` to be"):
            call()
    assert not state.counts.any()


def test_example(tmp_path: Path) -> None:
    """It runs under torchrun, and every process ends with the same weights and coefficients."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = EXAMPLES / "distributed.py"
    assert len(script.read_text().splitlines()) <= 40
    # Python is left at once: a thread of torch's gloo backend may still let go of Python's objects, and in a Python
    # that is being taken down that ends the process with std::terminate (seen in 1 of 100 runs on a loaded machine).
    (tmp_path / "run.py").write_text(
        f"import os, runpy, sys\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
        f"sys.stdout.flush()\n"
        f"os._exit(0)\n"
    )
    run = subprocess.run(
        [*launch, str(tmp_path / "run.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    # Not by lines: both processes write to one pipe, and a line's end may come behind the other's line.
    found = dict(re.findall(r"process (\d): (\{.*?\})", run.stdout))
    assert found.keys() == {"0", "1"}
    assert found["0"] == found["1"]
