"""Whether the competition strength of joint training tells where AGM helps, from the results.csv of a study.

python docs/results/field/strength.py docs/results/field/results.csv "agm shared"
"""

import csv
import statistics
import sys
from collections import defaultdict

from scipy import stats

path, method = sys.argv[1:]
found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
with open(path, newline="") as file:
    for row in csv.DictReader(file):
        found[row["task"], row["method"]][row["metric"]] = float(row["mean"])

strengths, gains, gaps, changes = [], [], [], []
for task in dict.fromkeys(task for task, _ in found):
    joint, other = found[task, "joint"], found[task, method]
    gap, change = joint["shapley_gap"], other["accuracy"] - joint["accuracy"]
    gaps.append(gap)
    changes.append(change)
    print(f"{task}: Shapley gap of joint training {100 * gap:.0f}, {method} {100 * change:+.1f} points of accuracy")
    for name in (metric.removeprefix("strength_") for metric in joint if metric.startswith("strength_")):
        strengths.append(joint[f"strength_{name}"])
        gains.append(other[f"response_{name}"] - joint[f"response_{name}"])
        print(f"    {name}: strength {strengths[-1]:.2f}, response {100 * gains[-1]:+.1f} points")
result = stats.spearmanr(strengths, gains)
print(f"strength against gain of response, {len(gains)} modalities: rank correlation {result.statistic:.2f}", end=", ")
print(f"p {result.pvalue:.2f}")
of_gap = stats.spearmanr(gaps, changes)
print(f"gap against change of accuracy, {len(gaps)} tasks: rank correlation {of_gap.statistic:.2f}", end=", ")
print(f"p {of_gap.pvalue:.2f}")
print(f"mean gain {100 * statistics.fmean(gains):+.1f} points")
