"""The automatic choice of a backend is the one that was measured to be fastest."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from agm.ops import _backends
from agm.ops._library import OPS

RESULTS = Path(__file__).parents[2] / "bench" / "results"
NOISE = 1.25  # a median may be off by as much on a machine that others use too


def measured(device: str, suites: tuple[str, ...] = ("head", "grads")) -> dict[tuple[str, str, str], dict[str, float]]:
    """(op, shape, dtype) -> seconds of each backend."""
    seconds: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    lines = [
        line
        for suite in suites
        for line in (RESULTS / f"{suite}-{device}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for row in map(json.loads, lines):
        if row["variant"] in _backends.BACKENDS and row["op"] in OPS:  # rivals are not to choose from
            seconds[row["op"], row["shape"], row["dtype"]][row["variant"]] = row["seconds"]
    return seconds


def test_on_a_cpu() -> None:
    results = measured("cpu")
    assert len(results) > 40
    for (op, shape, _), seconds in results.items():
        if _backends.BACKENDS["cpp"].why_not(op, "cpu") is not None:
            pytest.skip("there are no C++ kernels here to choose")
        chosen = _backends._automatic(op, "cpu")
        assert seconds[chosen] <= NOISE * min(seconds.values()), (op, shape, seconds)


def test_on_a_gpu() -> None:
    """Where rows are there. Without, the order is the one that machine code predicts (tests/ops/test_spills.py)."""
    if not (RESULTS / "head-cuda.jsonl").exists():
        pytest.skip("nothing was measured on a GPU yet")
    results = measured("cuda", ("head",))
    assert results
    for (op, shape, _), seconds in results.items():
        chosen = next(name for name in _backends.BACKENDS if name in seconds)
        assert seconds[chosen] <= NOISE * min(seconds.values()), (op, shape, seconds)
