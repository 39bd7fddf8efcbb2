"""What the finished runs of a comparison that was broken off say: a row a run, and differences over the seeds that both
methods have.

    python docs/study/collect.py runs/study/NAME/compare docs/results/study/NAME
"""

import csv
import json
import sys
from pathlib import Path

from agm.training.compare import mean_interval
from agm.training.records import read_table

BASELINE = "joint"
UNFINISHED = "unfinished"


def collected(folder: Path) -> list[dict]:
    """One row a run, with `state`; figures of finished ones are of the test split after the last epoch."""
    rows = []
    for run in sorted(folder.glob("*-seed*")):
        method, seed = run.name.rsplit("-seed", 1)
        row = {"method": method, "seed": int(seed), "state": UNFINISHED, "epochs": len(read_table(run / "metrics.csv"))}
        if (run / "result.json").exists():
            result = json.loads((run / "result.json").read_text())
            kinds = ("accuracy", "response_", "absent_")
            row |= {"state": "finished"} | {name: value for name, value in result.items() if name.startswith(kinds)}
        for file, prefix in (("strength.json", "strength_"), ("apart.json", "apart_strength_")):
            if (run / file).exists():
                found = json.loads((run / file).read_text())["strength"]
                row |= {prefix + name: value for name, value in found.items()}
        rows.append(row)
    return rows


def paired(rows: list[dict]) -> list[dict]:
    """Of each method and figure: its mean, and its difference to joint training over the seeds that both have."""
    finished = {(row["method"], row["seed"]): row for row in rows if row["state"] != UNFINISHED}
    found = []
    for method in dict.fromkeys(method for method, _ in finished):
        seeds = [s for m, s in finished if m == method and (BASELINE, s) in finished]
        for name in finished[method, seeds[0]] if seeds else ():
            pairs = [(finished[method, s].get(name), finished[BASELINE, s].get(name)) for s in seeds]
            if name in ("method", "seed", "state", "epochs") or any(None in pair for pair in pairs):
                continue
            mean, low, high = mean_interval([a - b for a, b in pairs])
            value = sum(a for a, _ in pairs) / len(pairs)
            found.append(
                {"figure": name, "method": method, "seeds": " ".join(map(str, seeds)), "mean": value}
                | {"difference": mean, "low": low, "high": high}
            )
    return sorted(found, key=lambda row: row["figure"])


def write(path: Path, rows: list[dict]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(source: str, target: str) -> None:
    rows = collected(Path(source))
    write(Path(target) / "runs.csv", rows)
    write(Path(target) / "paired.csv", paired(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
