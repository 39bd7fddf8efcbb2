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
signal.signal(signal.SIGINT, signal.SIG_IGN if "ignored" in sys.argv else signal.default_int_handler)
import _agm_command
sys.exit(_agm_command.main(["info"]))
"""


@pytest.mark.parametrize("module", ["agm", "torch._C", "agm.training.cli"])
def test_one_line_and_no_traceback(tmp_path: Path, module: str) -> None:
    done = subprocess.run([sys.executable, "-c", PRESSING, module], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "agm: error: interrupted\n")


@pytest.mark.parametrize(
    ("words", "handler"), [(("none",), "default_int_handler"), (("agm.ops", "ignored"), "SIG_IGN")]
)
def test_the_command_runs_and_signals_are_as_ever_afterwards(
    tmp_path: Path, words: tuple[str, ...], handler: str
) -> None:
    code = PRESSING + f"assert signal.getsignal(signal.SIGINT) is signal.{handler}"
    code = code.replace("sys.exit(_agm_command.main", "assert 0 == (_agm_command.main")
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch" in done.stdout
