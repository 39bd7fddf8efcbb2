"""The command line of the benchmarks."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench import (
    base,
    check,
    compiling,
    grads,
    head,
    launches,
    linear,
    loading,
    overhead,
    profiling,
    report,
    running,
    sass,
    scaling,
    step,
    worker,
)
from bench.cases import Options
from bench.networks import FUSIONS, NETWORKS
from bench.rows import Row, environment, write

SUITES = {
    "head": head,
    "step": step,
    "grads": grads,
    "linear": linear,
    "compile": compiling,
    "data": loading,
    "scaling": scaling,
}

EPILOG = """
suites:
  head      each op alone: forward, backward, both; every backend, and the rivals
  step      a whole training step over a joint one: time, peak memory, rows through the encoders
  grads     rescaling the parameter gradients of real networks
  linear    the fused linear head against logits that are made: time and memory
  compile   a step in eager mode, under torch.compile, in a CUDA graph
  data      examples a second of the loaders
  scaling   head and step over batch, classes and modalities
other commands:
  report    tables, pictures and the README's figures, again from bench/results
  check     measures what bench/thresholds.toml bounds; fails where a bound is broken
  profile   where the time of a step goes
  launches  operations that a step sends to the device, over a joint one; counted, not timed
  overhead  Python calls of a step of a tiny network, and its time over three naive passes
  sass      instructions a class of the CUDA kernels, read from their machine code; needs nvcc, no GPU
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python bench",
        description="What modulation costs. Variants take turns in one run; ratios are taken round by round.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "command",
        choices=(*SUITES, "report", "check", "profile", "launches", "overhead", "sass", "worker"),
        metavar="COMMAND",
    )
    result.add_argument("--rounds", type=int, default=7, help="measurements of each variant, 2 or more (default 7)")
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--quick", action="store_true", help="few small cases, nothing compiled")
    result.add_argument("--network", nargs="+", choices=NETWORKS, default=(), metavar="NAME", help=", ".join(NETWORKS))
    result.add_argument("--fusion", nargs="+", choices=FUSIONS, default=(), metavar="NAME", help=", ".join(FUSIONS))
    result.add_argument("--modalities", nargs="+", type=int, default=(), metavar="M")
    result.add_argument("--batch", type=int, help="samples of a step")
    result.add_argument("--op", nargs="+", default=(), metavar="NAME", help="ops of the suite head")
    result.add_argument(
        "--variants", nargs="+", default=(), metavar="NAME", help="those to measure beside the baseline"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="append the rows to this file, one a line")
    result.add_argument("--base", metavar="REV", help="compare this revision of the project with the working tree")
    result.add_argument("--suite", choices=SUITES, help=argparse.SUPPRESS)  # of a worker
    return result


def options_of(given: argparse.Namespace) -> Options:
    """The options of a command line that has been parsed."""
    return Options(
        device=torch.device(given.device),
        rounds=given.rounds,
        quick=given.quick,
        networks=tuple(given.network),
        fusions=tuple(given.fusion),
        modalities=tuple(given.modalities),
        ops=tuple(given.op),
        variants=tuple(given.variants),
        batch=given.batch,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    line = parser()
    given = line.parse_args(arguments)
    if given.rounds < 2:
        line.error("--rounds must be 2 or more, since percentiles of one measurement say nothing")
    options = options_of(given)
    if given.command == "report":
        report.write_all()
    elif given.command == "check":
        raise SystemExit(check.main(options))
    elif given.command == "profile":
        print(profiling.table(options))
    elif given.command == "launches":
        raise SystemExit(launches.main(options, _keeper(given.json, options)))
    elif given.command == "overhead":
        raise SystemExit(overhead.main(options, _keeper(given.json, options)))
    elif given.command == "sass":
        raise SystemExit(sass.main())
    elif given.command == "worker":
        worker.serve(SUITES[given.suite], options)
    elif given.base:
        keep = _keeper(given.json, options)
        for row in base.compare(given.command, SUITES[given.command], options, given.base):
            keep(row)
    else:
        suite = SUITES[given.command]
        keep = _keeper(given.json, options)
        running.run(given.command, suite.cases(options), options, suite.extras, keep)


def _keeper(path: Path | None, options: Options) -> Callable[[Row], None]:
    """Appends rows to a file, each with where it was measured; without a file it does nothing."""
    if path is None:
        return lambda row: None
    facts = environment(options.device) | {"AGM_BACKEND": os.environ.get("AGM_BACKEND")}
    return lambda row: write(path, facts, [row])
