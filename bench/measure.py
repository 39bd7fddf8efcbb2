"""Interleaved timing of variants, and the row of facts that every result carries."""

import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

SHORT = 2e-3  # seconds: what takes less is called several times in a row


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each variant, `rounds` times; they take turns, and another one begins each round."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls = {}
    for name in names:
        variants[name]()  # warm-up: allocations, autotuning, lazy modules
        once = _time(variants[name], 1, device)
        calls[name] = max(1, min(1000, int(SHORT / max(once, 1e-7))))
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(_time(variants[name], calls[name], device))
    return seconds


def _time(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of one call, the mean of some in a row."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - began) / calls
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(calls):
        function()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3 / calls


def summary(seconds: list[float], baseline: list[float]) -> dict[str, float]:
    """Median and 20/80 percentiles of the seconds, and of the ratio to the baseline, round by round."""
    ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
    row = {}
    for name, values in (("seconds", seconds), ("ratio", ratios)):
        fifths = statistics.quantiles(values, n=5)
        row |= {name: statistics.median(values), f"{name}_20": fifths[0], f"{name}_80": fifths[3]}
    return row


def write(path: Path, facts: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends the rows to a file, one JSON object a line."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**facts, **row}) + "\n" for row in rows)


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what a figure was measured."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readlines()
    except OSError:
        return []
