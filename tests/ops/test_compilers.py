"""The arithmetic that host and device share, compiled by itself under sanitizers."""

import math
import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch

from agm import subset_weights
from agm.ops import reference

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


# Blocks of work, the most parts of each, and how many blocks the device runs at once.
GRIDS = list(product([1, 2, 7, 60, 170, 300, 396, 397, 500, 5000], [0, 1, 3, 63, 1000], [24, 396, 528]))


def test_grids_leave_little_idle(arithmetic: Path) -> None:
    even, parts = printed(arithmetic, [line("grid", *grid) for grid in GRIDS]).view(-1, 2).T.long().tolist()
    launching = pytest.importorskip("agm.kernels.launching")
    for (blocks, most, resident), own, own_parts in zip(GRIDS, even, parts, strict=True):
        assert own <= resident
        assert own * -(-blocks // own) - blocks < -(-blocks // own)  # no more than one block's work is missing
        assert -(-blocks // own) == -(-blocks // resident)  # and each has as little as can be

        def time(parts: int, blocks: int = blocks, resident: int = resident) -> float:
            return -(-blocks * parts // resident) / parts

        assert 1 <= own_parts <= max(most, 1)
        few = range(1, max(min(most, 3 * resident // blocks), 1) + 1)  # more are small, and would be started in vain
        assert time(own_parts) <= min(map(time, few)) * 1.0001
        assert launching.even_programs(blocks, resident) == own
        assert launching.parts_that_fill(blocks, most, resident) == own_parts


# The known answers of Random123 (kat_vectors) for philox4x32 of 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(arithmetic: Path, counter: str, key: str, answer: str) -> None:
    words = [int(word, 16) for word in f"{counter} {key}".split()]
    result = printed(arithmetic, [line("philox", *words)])
    assert [f"{int(word):08x}" for word in result] == answer.split()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
@pytest.mark.parametrize("stream", [0, 7])
def test_normal_numbers(arithmetic: Path, seed: int, stream: int) -> None:
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    blocks = 2000
    result = printed(arithmetic, [line("normals", low, high, stream, block, 0) for block in range(blocks)])
    expected = reference.philox_normal(torch.tensor([seed]), stream, 4 * blocks)
    # A few units in the last place of the radius, at most 5.8, and of the angle, at most 6.3.
    torch.testing.assert_close(result, expected.double(), rtol=0, atol=3e-6)


def test_normal_numbers_of_every_angle_and_radius(arithmetic: Path) -> None:
    """Blocks past 2**32 are counted in the second word; none gives a number that is not finite."""
    lines = [line("normals", 5, 6, 1, block, 9) for block in range(20000)]
    result = printed(arithmetic, lines)
    assert result.isfinite().all()
    assert result.abs().max() < 5.9
    first = printed(arithmetic, [line("philox", 0, 9, 1, 0, 5, 6)]).long()
    radius = math.sqrt(-2 * math.log(((int(first[0]) >> 8) + 0.5) * 2.0**-24))
    angle = 2 * math.pi * (int(first[1]) >> 8) * 2.0**-24
    assert result[0].item() == pytest.approx(radius * math.cos(angle), abs=3e-6)
    assert result[1].item() == pytest.approx(radius * math.sin(angle), abs=3e-6)


@pytest.mark.parametrize(("letter", "dtype"), [("f", torch.float32), ("d", torch.float64)])
def test_gradients_are_rescaled(arithmetic: Path, letter: str, dtype: torch.dtype) -> None:
    numbers = [0.0, -0.0, -1.0 / 3, 1e-60, 1e300, math.nan, math.inf]
    cases = [(k, g, n, d) for k in numbers for g in numbers for n in (0.0, -1.7) for d in (1e-8, 0.3, math.nan)]
    result = printed(arithmetic, [line("rescale_" + letter, *case) for case in cases]).view(-1, 2)
    k, g, n, d = torch.tensor(cases, dtype=torch.float64).T.to(dtype)
    n = n.float().to(dtype)
    exact = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(result[:, 0], (k * g).double(), **exact)
    torch.testing.assert_close(result[:, 1], (k * g + n * d).double(), **exact)


@pytest.mark.parametrize(
    "numbers",
    [
        [5.0],
        [1.0, 2.0],
        [3.0] * 7,
        [1e8, 1e8 + 1, 1e8 + 2, 1e8 - 1, 1e8 + 7, 1e8, 1e8 + 3],
        [1e12, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [1.0, 2.0, math.nan, 4.0],
        [1.0, math.inf, 2.0, 4.0],
    ],
    ids=str,
)
def test_standard_deviations(arithmetic: Path, numbers: list[float]) -> None:
    result = printed(arithmetic, [line("deviation", len(numbers), *numbers)])
    expected = torch.tensor(numbers, dtype=torch.float64).std() if len(numbers) > 1 else torch.tensor(0.0)
    torch.testing.assert_close(result, expected.double().view(1) + 1e-8, rtol=1e-12, atol=0, equal_nan=True)
