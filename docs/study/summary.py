"""The tables of this folder's README, from docs/results/study/*/compare.csv.

python docs/study/summary.py
"""

import csv
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "study"
SETTINGS = {"bundled": "bundled", "noisy-image": "noisy images", "useless-image": "useless images"}
VARIANTS = {
    "joint": "joint training",
    "agm(alpha=3)": "exact",
    "agm(alpha=3,clip_norm=1,clip_above=1)": "exact, clipped",
    "agm(alpha=3,bound=0.9)": "exact, bounded by 0.9",
    "agm(alpha=3,smoothing=0.9)": "exact, smoothed by 0.9",
    "agm(alpha=3,masked=shared)": "shared",
    "apart": "networks of one modality",
}


def rows(setting: str) -> dict[tuple[str, str], dict[str, str]]:
    with open(RESULTS / setting / "compare.csv", newline="", encoding="utf-8") as file:
        return {(row["metric"], row["method"]): row for row in csv.DictReader(file)}


def accuracy(row: dict[str, str] | None) -> str:
    """Mean, worst seed and paired difference, in percent."""
    if row is None:
        return ""
    seeds = [row[name] for name in row if name.startswith("seed_")]
    found = [100 * float(value) for value in seeds if value]
    text = f"{100 * float(row['mean']):.1f} (worst {min(found):.1f})"
    if len(found) < len(seeds):
        text = f"{len(seeds) - len(found)} of {len(seeds)} diverged"
    elif row["low"]:
        difference, low, high = (100 * float(row[name]) for name in ("difference", "low", "high"))
        text += f"<br>{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
    return text


def pair(found: dict[tuple[str, str], dict[str, str]], kind: str, method: str, scale: float, digits: int) -> str:
    figures = [found.get((f"{kind}_{name}", method)) for name in ("audio", "image")]
    return " / ".join(f"{scale * float(row['mean']):.{digits}f}" if row and row["mean"] else "–" for row in figures)


def main() -> None:
    tables = {name: rows(name) for name in SETTINGS if (RESULTS / name / "compare.csv").exists()}
    print(f"| | {' | '.join(SETTINGS[name] for name in tables)} |\n" + "|---" * (len(tables) + 1) + "|")
    for method, title in VARIANTS.items():
        if method != "apart":
            cells = [accuracy(table.get(("accuracy", method))) for table in tables.values()]
        else:
            cells = [pair(table, "response", method, 100, 1) + " (audio / image)" for table in tables.values()]
        print(f"| {title} | {' | '.join(cells)} |")
    titles = [f"{SETTINGS[name]}: {kind}" for name in tables for kind in ("responses, %", "strength")]
    print(f"\n| audio / image | {' | '.join(titles)} |\n" + "|---" * (len(titles) + 1) + "|")
    for method, title in VARIANTS.items():
        cells = []
        for table in tables.values():
            cells += [pair(table, "response", method, 100, 1), pair(table, "strength", method, 1, 3)]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
