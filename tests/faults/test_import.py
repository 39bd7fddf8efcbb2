"""Ctrl-C while the command imports what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

# Presses Ctrl-C when a module is looked for, as an import that takes its time gives occasion to.
PRESSING = """
import os, signal, sys

class Pressing:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Pressing())
import _agm_command
sys.exit(_agm_command.main(["info"]))
"""


@pytest.mark.parametrize("module", ["agm", "torch._C", "agm.ops", "click", "agm.training.cli"])
def test_one_line_and_no_traceback(tmp_path: Path, module: str) -> None:
    done = subprocess.run([sys.executable, "-c", PRESSING, module], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "agm: error: interrupted\n")


def test_the_command_runs_and_can_be_interrupted_as_ever_afterwards(tmp_path: Path) -> None:
    code = PRESSING + "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    code = code.replace("sys.exit(_agm_command.main", "assert 0 == (_agm_command.main")
    done = subprocess.run([sys.executable, "-c", code, "none"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch" in done.stdout
