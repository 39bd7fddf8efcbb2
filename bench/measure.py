"""Interleaved timing of variants, and what their times allow to say."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache

import torch

Calls = Mapping[str, Callable[[], object]]

SHORT = 2e-3  # seconds: what takes less is called several times in a row
LONG = 1.0  # seconds: one call is warm-up enough
MOST_CALLS = {"cpu": 1000, "cuda": 200}  # a GPU takes about 1000 launches before the next one waits
CYCLES = 2e9  # a second, of a GPU: the order of magnitude is enough for a backlog
# The distance of the 20 and 80 percentiles over the median, from which on a ratio says nothing.
NOISE = 0.15


def interleaved(variants: Calls, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each variant, `rounds` times; they take turns, and another one begins each round."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls = {name: warm_up(variants[name], device) for name in names}
    for number in range(rounds):
        for name in turns(names, number):
            seconds[name].append(seconds_of(variants[name], calls[name], device))
    return seconds


def turns(names: list[str], number: int) -> list[str]:
    """The order of a round: another variant begins each time, and every other round runs backwards.

    Who comes behind whom matters (caches, the processor's clock), so it does not stay the same.
    """
    shift = number % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if number // len(names) % 2 else order


def warm_up(function: Callable[[], object], device: torch.device) -> int:
    """Calls it until allocations, autotuning and compilations are behind; returns how many calls make a measurement."""
    once = seconds_of(function, 1, device)
    if once > LONG:
        return 1
    once = seconds_of(function, 1, device)
    if once < SHORT:  # the first calls of what is short are slower than the rest
        once = seconds_of(function, 10, device)
    return max(1, min(MOST_CALLS[device.type], int(SHORT / max(once, 1e-9))))


def seconds_of(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of one call, the mean of `calls` in a row.

    On a GPU by events. What is short waits behind a kernel that keeps the GPU busy while the calls are launched, so
    that the GPU's time is measured and not Python's.
    """
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - began) / calls
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    if calls > 1:
        began = time.perf_counter()
        function()
        launching = (time.perf_counter() - began) * calls
        torch.cuda.synchronize(device)
        torch.cuda._sleep(int(1.5 * launching * CYCLES))
    first.record()
    for _ in range(calls):
        function()
    last.record()
    torch.cuda.synchronize(device)
    milliseconds: float = first.elapsed_time(last)
    return milliseconds / 1e3 / calls


def summary(seconds: list[float], baseline: list[float]) -> dict[str, float]:
    """Median and 20/80 percentiles of the seconds, and of the ratio to the baseline, round by round."""
    ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
    row: dict[str, float] = {"rounds": len(seconds)}
    for name, values in (("seconds", seconds), ("ratio", ratios)):
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        row |= {name: statistics.median(values), f"{name}_20": fifths[0], f"{name}_80": fifths[3]}
    return row


def spread(row: Mapping[str, float]) -> float:
    """How far the middle three fifths of the ratios are apart, over their median."""
    return (row["ratio_80"] - row["ratio_20"]) / row["ratio"]


def is_noisy(row: Mapping[str, float]) -> bool:
    return spread(row) > NOISE


def verdict(row: Mapping[str, float], most: float) -> str:
    """Whether the ratio is at most `most`: "holds", "broken", or "too noisy" where the rounds do not agree on it."""
    if is_noisy(row) and row["ratio_20"] <= most < row["ratio_80"]:
        return "too noisy"
    return "holds" if row["ratio"] <= most else "broken"


@cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy far beyond the caches, those read and those written counted."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, 7, device)["copy"]
    return 2 * size / statistics.median(seconds)
