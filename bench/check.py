"""Measures what thresholds.toml bounds, and says which bounds hold."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from bench import head, step
from bench.cases import Case, Options
from bench.measure import interleaved, summary, verdict
from bench.networks import NETWORKS
from bench.thresholds import Ratio, ratios


def main(options: Options) -> int:
    """Prints a line a bound; returns the exit status: 1 if one is broken."""
    found: list[str] = []
    bounds = sorted(ratios(options.device.type), key=lambda bound: bound.case)
    for _, group in groupby(bounds, key=lambda bound: bound.case):
        found += check(list(group), options)
    broken, unknown = found.count("broken"), found.count("too noisy")
    print(f"{len(found)} bounds: {found.count('holds')} hold, {broken} broken, {unknown} not concluded (too noisy)")
    return 1 if broken else 0


def check(bounds: list[Ratio], options: Options) -> Iterator[str]:
    """The verdicts on the bounds of one case, whose variants take turns."""
    names = [name for bound in bounds for name in (bound.variant, bound.over)]
    built = find(bounds[0], replace(options, variants=tuple(names))).build()
    seconds = interleaved(built.variants, options.rounds, options.device)
    for bound in bounds:
        if missing := [name for name in (bound.variant, bound.over) if name not in seconds]:
            print(f"{bound}: not measured, {missing[0]} cannot serve here", flush=True)
            yield "missing"
            continue
        row = summary(seconds[bound.variant], seconds[bound.over])
        said = verdict(row, bound.most)
        measured = f"{row['ratio']:.3f} ({row['ratio_20']:.3f} - {row['ratio_80']:.3f})"
        print(f"{bound!s:64} {measured:24} at most {bound.most:<5} {said}", flush=True)
        yield said


def find(bound: Ratio, options: Options) -> Case:
    """The case that a bound is about.

    Raises:
        ValueError: there is none.
    """
    if bound.suite == "step":
        chosen = replace(options, batch=bound.batch or options.batch)
        return step.case(NETWORKS[bound.network], bound.fusion, bound.modalities, chosen)
    for case in head.cases(replace(options, ops=(bound.op,))):
        if case.facts["shape"] == bound.shape:
            return case
    raise ValueError(f"thresholds.toml bounds {bound}, but no suite measures it.")
