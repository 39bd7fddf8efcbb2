"""The arithmetic that host and device share, compiled by itself under sanitizers."""

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from agm import subset_weights
from agm.ops import reference

# These tests come early: by the time of test_sanitizers.py and test_spills.py the long compilations are done.
pytestmark = pytest.mark.usefixtures("compilations", "sanitized_session")

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"


def run(command: list[object], **options: object) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared header as a program, with the address and the undefined-behaviour sanitizers."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program = tmp_path_factory.mktemp("arithmetic") / "arithmetic"
    flags = ["-std=c++20", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC / 'common'}"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    run([compiler, *flags, *sanitizers, HERE / "arithmetic_main.cpp", "-o", program])
    return program


def printed(program: Path, lines: list[str]) -> torch.Tensor:
    """The numbers that the program prints for the lines."""
    words = run([program], input="\n".join(lines) + "\n").stdout.split()
    return torch.tensor([float(word) for word in words], dtype=torch.float64)


def line(op: str, *numbers: float) -> str:
    return " ".join([op, *map(repr, numbers)])


@pytest.mark.parametrize(("letter", "dtype"), [("f", torch.float32), ("d", torch.float64)])
def test_gradients_are_scaled(arithmetic: Path, letter: str, dtype: torch.dtype) -> None:
    numbers = [0.0, -0.0, 1.0, -1.0 / 3, 1e-60, 1e300, math.nan, math.inf]
    pairs = [(scale, gradient) for scale in numbers for gradient in numbers]
    result = printed(arithmetic, [line("scale_" + letter, *pair) for pair in pairs])
    scales, gradients = torch.tensor(pairs, dtype=torch.float64).T
    expected = torch.stack(
        [
            reference.modulate_backward(gradient.to(dtype).view(1, 1), scale.view(1))
            for scale, gradient in zip(scales, gradients, strict=True)
        ]
    ).flatten()
    torch.testing.assert_close(result, expected.double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("modalities", [2, 3, 6, 16])
def test_weights(arithmetic: Path, modalities: int) -> None:
    result = printed(arithmetic, [line("weights", modalities)]).view(-1, modalities).T
    torch.testing.assert_close(result, subset_weights(modalities), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("letter", "dtype"), [("f", torch.float32), ("d", torch.float64)])
def test_costs_of_merged_halves(arithmetic: Path, letter: str, dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    rows = [
        [0.1, -3.0, 2.0, 0.5],
        [1e4, -1e4, 0.0, 9999.0],
        [-inf, -inf, 1.0, 2.0],
        [1.0, 2.0, -inf, -inf],
        [-inf, -inf, -inf, -inf],
        [inf, 0.0, 1.0, 2.0],
        [0.0, 1.0, inf, inf],
        [0.0, nan, 1.0, 2.0],
        [nan, nan, nan, nan],
    ]
    labels = [label for _ in rows for label in range(4)]
    lines = [line("cost_" + letter, 18.4, label, *row) for row in rows for label in range(4)]
    logits = torch.tensor([row for row in rows for _ in range(4)], dtype=dtype)
    expected, _ = reference.sample_scores(logits[None], torch.tensor(labels), math.exp(-18.4), -100)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    result = printed(arithmetic, lines)
    torch.testing.assert_close(result, expected[0].double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def test_the_winner_is_torchs_argmax(arithmetic: Path) -> None:
    numbers = [0.0, 1.0, -math.inf, math.inf, math.nan]
    rows = [[a, b, c] for a in numbers for b in numbers for c in numbers]
    lines = [line("beats", row[i], i, row[label], label) for row in rows for label in range(3) for i in range(3)]
    beaten = printed(arithmetic, lines).view(len(rows), 3, 3).any(-1)
    winner = torch.tensor(rows).argmax(-1)
    assert torch.equal(~beaten, winner[:, None] == torch.arange(3))


@pytest.mark.parametrize("max_gap", [0.05, 10.0, math.inf])
def test_steps(arithmetic: Path, max_gap: float) -> None:
    scores = torch.tensor([1.0, 2.5, 0.25], dtype=torch.float64)
    running = torch.tensor([1.5, 2.0, 1.0], dtype=torch.float64)
    result = printed(arithmetic, [line("step", 1.1, max_gap, *scores.tolist(), *running.tolist())])
    ratio, reference_ratio = reference.discrepancy_ratios(scores), reference.discrepancy_ratios(running)
    kappa = (1.1 * (reference_ratio - ratio).clamp(max=max_gap)).exp()
    expected = torch.cat([ratio, reference_ratio, kappa, reference.subset_scales(kappa)])
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-14)
