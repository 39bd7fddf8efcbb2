"""A page for every registered strategy, and the table of all.

What a page says comes from four places: the idea from docs/methods/ideas.toml or, where it has none, from the table in
agm/strategies/README.md; formula, settings and source from the docstring; its options from the constructor; evidence
from the comparisons in docs/results.
"""

import csv
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from agm.strategies import options_of, strategies
from agm.strategies.strategy import Strategy

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "agm" / "strategies" / "README.md"
IDEAS = ROOT / "docs" / "methods" / "ideas.toml"
RESULTS = ROOT / "docs" / "results"

_INDEX = """\
# Methods

A *strategy* balances the modalities of a network while it trains. AGM is one; its baselines and its followers are
others. All of them fit into the same loop ([Choosing a method and alpha](../tutorials/choosing.md)), are trained by
`agm train --method NAME`, and are compared by `agm compare --methods NAME,NAME`.

A page says what the idea is, has the formula and the settings with the authors' values, shows what we measured, and
names the source, also where released code departs from the paper.
"""

_AFTER = """
Published figures of most of them, protocol by protocol: [Published tables](../published.md). How to add one:
[Contributing](../contributing.md#add-a-strategy).
"""


class Row(NamedTuple):
    """A line of the table in agm/strategies/README.md."""

    does: str
    paper: str


class Evidence(NamedTuple):
    """The joint accuracy of a method in one comparison, in %."""

    comparison: str
    fusion: str
    variant: str
    joint: str
    reached: str
    difference: str
    seeds: str


@cache
def table() -> dict[str, Row]:
    """Name of a strategy -> what the table of strategies says about it."""
    rows: dict[str, Row] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and (names := re.findall(r"`([^`]+)`", cells[0])):
            rows |= dict.fromkeys(names, Row(cells[2], cells[3]))
    return rows


@cache
def ideas() -> dict[str, str]:
    """Name of a strategy -> its idea in two sentences or so, where docs/methods/ideas.toml has it."""
    return tomllib.loads(IDEAS.read_text(encoding="utf-8"))


def pages() -> dict[str, str]:
    """Place in the site -> page."""
    made = {f"methods/{name}.md": _page(name, kind) for name, kind in strategies.items()}
    return made | {"methods/index.md": _index()}


def _index() -> str:
    lines = ["| method | what it does | source |", "| --- | --- | --- |"]
    for name in strategies:
        row = _row(name)
        lines.append(f"| [`{name}`]({name}.md) | {row.does} | {row.paper} |")
    return "\n".join([_INDEX, *lines, _AFTER])


def _row(name: str) -> Row:
    if name not in table():
        raise KeyError(
            f"Expected the table in agm/strategies/README.md to have a line for `{name}`, which is registered, but got "
            "none. Add: | `NAME` | `CLASS` | what it does | source |."
        )
    return table()[name]


def _page(name: str, kind: type[Strategy]) -> str:
    row = _row(name)
    idea = ideas().get(name) or f"`{name}` {row.does}."
    text = [f"# {name}", "", idea, "", *_facts(name, kind, row), "## Evidence", ""]
    text += _evidence(name) or [
        "In no comparison of ours yet. `agm compare` makes one:",
        "",
        "```bash",
        f"agm compare --methods joint,{name} --seeds 5",
        "```",
    ]
    text += ["", "## Formula, settings and source", ""]
    for shown in (kind, *(base for base in kind.__bases__ if base in strategies.values())):
        text += [f"::: agm.strategies.{shown.__name__}", "    options:", "      heading_level: 3"]
        text += ["      show_root_heading: true", "      show_root_full_path: true", "      members: false", ""]
    return "\n".join(text)


def _facts(name: str, kind: type[Strategy], row: Row) -> list[str]:
    options = [f"`{key}={value!r}`" for key, value in options_of(name).items()]
    splits = sorted(kind.needs - {"index"})
    facts = {
        "Command line": f"`agm train --method {name}`",
        "Python": f"`agm.strategies.{kind.__name__}(network, ...)`",
        "Source": row.paper or "none",
        "Settings and defaults": ", ".join(options) or "none of its own",
        "Targets": ", ".join(sorted(kind.tasks)) + ("; tokens and pixels too" if kind.dense else ""),
        "Heads of its own": "one a modality, where the network's does not split" if kind.trains_heads else "none",
        "Between epochs it looks at": " and ".join(f"the {split} split" for split in splits) or "nothing",
        "DistributedDataParallel": "yes" if kind.distributed else f"no: {kind.why_alone}",
    }
    return [*(f"- **{key}:** {value}" for key, value in facts.items()), ""]


def _evidence(name: str) -> list[str]:
    rows = sorted(_measured(name))
    if not rows:
        return []
    links = [f"[{name}](../results/{name}/compare.md)" for name in dict.fromkeys(row.comparison for row in rows)]
    text = [
        "Joint accuracy on the test split, in %, mean over the seeds after the last epoch. The difference to joint "
        "training is paired by seed, with its 95 % interval. A run that diverged has no figures and is left out of the "
        f"mean. Settings and commands: {', '.join(links)}. One kind of data and small networks: see "
        "[When it helps](../concepts/when.md).",
        "",
        "| comparison | fusion | variant | joint training | method | difference | seeds that ended |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return [*text, *(f"| {' | '.join(row)} |" for row in rows)]


def _measured(name: str) -> Iterator[Evidence]:
    for path in RESULTS.rglob("compare.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["metric"] == "accuracy"]
        joint = {row.get("fusion", ""): row for row in rows if row["method"] == "joint"}
        for row in rows:
            variant = row["method"]
            if variant.partition("(")[0] != name or variant == "joint":
                continue
            fusion = row.get("fusion", "")
            runs = [value for key, value in row.items() if key.startswith("seed_")]
            interval = f" [{_points(row['low'])}, {_points(row['high'])}]" if row["low"] else ""
            yield Evidence(
                path.parent.relative_to(RESULTS).as_posix(),
                fusion or "late",
                f"`{variant}`",
                f"{100 * float(joint[fusion]['mean']):.1f}",
                f"{100 * float(row['mean']):.1f}",
                f"{_points(row['difference'])}{interval}",
                f"{sum(value != '' for value in runs)} of {len(runs)}",
            )


def _points(share: str) -> str:
    return f"{100 * float(share):+.1f}"
