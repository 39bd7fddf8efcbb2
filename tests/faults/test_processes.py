"""Processes of which one has fewer batches, dies or stalls: nobody waits without end, and all learn why they end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SOAK

SCRIPT = Path(__file__).with_name("unequal_processes.py")


def _ended(folder: Path, what: str) -> list[str]:
    """What each of the two processes said."""
    command = [sys.executable, str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder), what], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said  # ended by no signal
    return [output.decode() for output, _ in said]


def test_a_join_that_does_not_know_of_the_modulation_is_refused_everywhere(tmp_path: Path) -> None:
    for said in _ended(tmp_path, "join"):
        assert said.startswith("ValueError: Expected torch's Join to hold what exchanges the scores of AGM")
        assert "agm.joining.joinable(model)" in said


@pytest.mark.parametrize("what", ["leave", "stall"] if SOAK > 1 else ["stall"])
def test_the_others_of_a_process_that_takes_no_step_learn_why_they_end(tmp_path: Path, what: str) -> None:
    said = _ended(tmp_path, what)
    *told, error = said[0].splitlines()
    assert said[1].splitlines()[-1] == "finished"
    assert error.startswith("RuntimeError: Expected every process of the group to exchange the scores of a training")
    assert "ran out of batches" in error
    if what == "stall":
        assert len(told) == 1
        assert told[0].startswith("Process 0 has waited 1 s for the other processes of its group")
        assert "timeout ends this process after 2 s" in told[0]
