"""Processes that train together: one start of each number of them serves for all checks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
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
    commands = [
        [sys.executable, "-m", f"{HERE.name}.worker", str(rank), str(size), str(folder)] for rank in range(size)
    ]
    processes = [
        subprocess.Popen(
            command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    return {check: [result.get(check, "was not reached") for result in results] for check in results[0]}
