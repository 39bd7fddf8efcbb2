"""What modulation costs: `python bench {step,head} [--rounds N] [--device D] [--json FILE]`.

step: a whole training step over a joint one. head: each op alone, on every backend that serves it here. The variants
take turns in one run; ratios are taken round by round.
"""

import argparse
from pathlib import Path

import head
import step
import torch
from measure import environment, write

SUITES = {"step": step.run, "head": head.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one a line")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = SUITES[options.suite](options.rounds, device)
    if options.json:
        write(options.json, environment(device), rows)


if __name__ == "__main__":
    main()
