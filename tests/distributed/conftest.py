"""Processes that train together: one start of each number of them serves for all checks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, list[str]]]:
    """Number of processes -> the name of each check -> what went wrong in it, by process."""
    found: dict[int, dict[str, list[str]]] = {}

    def of(size: int) -> dict[str, list[str]]:
        if size not in found:
            found[size] = _run(size, tmp_path_factory.mktemp(f"ranks-{size}"))
        return found[size]

    return of


def _run(size: int, folder: Path) -> dict[str, list[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # By its whole path: `distributed` alone is Dask's where that is installed.
    command = [sys.executable, "-m", f"{HERE.parent.name}.{HERE.name}.worker", str(size), str(folder)]
    outputs = [folder / f"{rank}.txt" for rank in range(size)]
    process = subprocess.Popen(command, cwd=HERE.parent.parent, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, "\n".join(output.read_text() for output in outputs if output.exists())
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    return {check: [result.get(check, "was not reached") for result in results] for check in results[0]}
