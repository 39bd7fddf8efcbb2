"""Runs the cases of a suite, prints the table while it grows, and returns its rows."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.cases import Case, Options
from bench.measure import interleaved, is_noisy, summary
from bench.rows import Row, label


def run(
    suite: str,
    cases: Iterable[Case],
    options: Options,
    extras: Callable[[Mapping[str, Any]], str] = lambda row: "",
    keep: Callable[[Row], object] = lambda row: None,
) -> list[Row]:
    """Measures every case; `extras` puts a row's further figures into words.

    Each row is handed to `keep` as soon as it is there, so that a run that is cut off loses nothing.
    """
    rows = []
    for case in cases:
        print(f"{label(case.facts)}, over {case.baseline}:", flush=True)
        built = case.build()
        notes = built.notes()
        seconds = interleaved(built.variants, options.rounds, options.device)
        for name, values in seconds.items():
            row = {"suite": suite, **case.facts, "variant": name, "over": case.baseline, **notes.get(name, {})}
            rows.append(row | summary(values, seconds[case.baseline]))
            keep(rows[-1])
            print(f"  {line(rows[-1])}  {extras(rows[-1])}".rstrip(), flush=True)
        del built
    return rows


def line(row: Mapping[str, Any]) -> str:
    noisy = "  too noisy to conclude" if is_noisy(row) else ""
    ratios = f"{row['ratio']:9.3f} ({row['ratio_20']:.3f} - {row['ratio_80']:.3f})"
    return f"{row['variant']:18} {ratios:32} {duration(row['seconds']):>10}{noisy}"


def duration(seconds: float) -> str:
    """Three digits in a unit that a reader can take in."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            value = seconds / size
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    raise AssertionError("the last unit takes everything")
