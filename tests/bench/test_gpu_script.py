"""bench/gpu.sh, as far as it can be followed without a GPU: what it would run, and for how long at most."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from bench import cli, step
from bench.networks import NETWORKS

ROOT = Path(__file__).parents[2]


def commands(*parts: str) -> list[tuple[int, list[str]]]:
    """Limit in seconds and command, in order."""
    script = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), *parts],
        env={**os.environ, "DRY": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert script.stderr == ""
    # A command may hold lines of Python, which do not begin with a number.
    lines: list[str] = []
    for line in script.stdout.splitlines():
        if line.split(" ", 1)[0].isdigit():
            lines.append(line)
        else:
            lines[-1] += "\n" + line
    return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1].split()) for line in lines]


def test_it_ends_before_a_quarter_of_an_hour() -> None:
    """Also where each command takes all that it may; the memory checker runs beside the tests."""
    limits = [limit for limit, command in commands() if "compute-sanitizer" not in command]
    assert sum(limits) <= 14 * 60


def test_correctness_comes_before_figures() -> None:
    found = [command for _, command in commands()]
    names = ["pytest" if "pytest" in command else "bench" if "bench" in command else "build" for command in found]
    assert names == sorted(names, key=["build", "pytest", "bench"].index)
    assert {"build", "pytest", "bench"} == set(names)


def test_a_step_is_timed_in_every_form() -> None:
    """The joint one, which all are over, is measured with them."""
    ((_, command),) = commands("step")
    variants = command[command.index("--variants") + 1 :]
    assert {"exact", "shared", "refreshed"} <= set(variants)
    given = cli.parser().parse_args([*command[command.index("bench") + 1 :]])
    given.device, given.networks = "cpu", ["tiny"]
    options = cli.options_of(given)
    made = step.prepare(NETWORKS["tiny"], "late", 2, 8, options)
    assert made.steps.keys() == {"joint", *variants}


def test_the_memory_checker_sees_every_allocation() -> None:
    (checked,) = [command for _, command in commands("tests") if "compute-sanitizer" in command]
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in checked


@pytest.mark.parametrize("part", ["head", "step", "graphs", "passes", "linear", "grads", "scaling"])
def test_the_benchmarks_take_these_options(part: str) -> None:
    ((_, command),) = commands(part)
    script = shlex.split(" ".join(command).replace("joint, graph exact, graph shared, graph", "'joint, graph'"))
    given = cli.parser().parse_args(script[script.index("bench") + 1 :])
    assert given.command in cli.SUITES
    assert given.rounds >= 2
    assert given.json is not None
    given.device = "cpu"
    assert next(iter(cli.SUITES[given.command].cases(cli.options_of(given)))) is not None
