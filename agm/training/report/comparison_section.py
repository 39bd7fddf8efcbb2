"""A comparison, and a study of many, as sections of a page: from the tables that `agm compare` wrote."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agm.training.answers import rightness
from agm.training.compare import Comparison
from agm.training.config import Config, read_config
from agm.training.drawing import Panel
from agm.training.errors import UserError
from agm.training.exports import interval, remark, shares, spread, title_of
from agm.training.plots import colours_of, comparison_panels
from agm.training.report.sections import Cell, Figures, Grid, percent
from agm.training.report.vector import Drawing, variable_of
from agm.training.run_folder import Row, RunFolder, read_table, run_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ComparisonSection", "compared", "comparison_grid", "comparison_section", "read_comparisons"]

SEED = "seed_"  # columns of a run's values
MANY = 5  # methods from which a figure of them takes the width of the page


@dataclass(frozen=True)
class ComparisonSection:
    """What a page tells of a comparison; its template is `comparison.html`.

    Args:
        anchor: its place in the page.
        title: dataset, fusions and seeds.
        folder: as it was given.
        command: what repeats it.
        tables: (its name, accuracies, further figures) of each fusion.
        remark: what their figures are.
        dots, curves: figures; the second of the runs whose folders are there.
        runs: each run and its figures.
        comparisons: as they were read.
    """

    anchor: str
    title: str
    folder: str
    command: str
    tables: tuple[tuple[str, Grid, Grid | None], ...]
    remark: str
    dots: Figures
    curves: Figures | None
    runs: Grid
    comparisons: tuple[Comparison, ...]

    kind = "comparison"


def comparison_section(folder: Path, anchor: str, drawing: Drawing) -> ComparisonSection:
    """Gather it from compare.csv, and from the tables of its runs where they are there.

    Args:
        folder: of `agm compare`.
        anchor: its place in the page.
        drawing: of the page.

    Raises:
        UserError: the table does not read.
    """
    config = _config(folder)
    rows = read_table(folder / "compare.csv")
    comparisons = read_comparisons(rows, folder / "compare.csv", "last" if config is None else config.choose)
    seeds, fusions = _seeds(rows), list(dict.fromkeys(c.fusion for c in comparisons))
    methods = list(dict.fromkeys(c.method for c in comparisons))
    data = "" if config is None else f"{Path(config.dataset).stem}, "
    named = ", ".join(name for name in fusions if name) or ("" if config is None else config.fusion)
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    tables = []
    for fusion in fusions:
        own = [c for c in comparisons if c.fusion == fusion]
        links = {method: _place(anchor, fusion, method) for method in methods}
        further = [c for c in own if not _is_first(c.metric)]
        main = comparison_grid([c for c in own if _is_first(c.metric)], links)
        tables.append((fusion, main, comparison_grid(further, links) if further else None))
    return ComparisonSection(
        anchor=anchor,
        title=f"{data}{named + ' fusion, ' if named else ''}{count}",
        folder=str(folder),
        command=f"agm compare --config {shlex.quote(str(folder))}/compare.toml" if config is not None else "",
        tables=tuple(tables),
        remark=remark(comparisons),
        dots=compared(comparisons, drawing),
        curves=_curves(folder, comparisons, seeds, drawing),
        runs=_runs(folder, comparisons, seeds, anchor),
        comparisons=tuple(comparisons),
    )


def read_comparisons(rows: Sequence[Row], path: Path, choose: str = "last") -> list[Comparison]:
    """Rows of compare.csv, or of one task of results.csv, as the comparisons that they were written from.

    Raises:
        UserError: they are no such rows.
    """
    seeds = _seeds(rows)
    try:
        found = []
        for row in rows:
            values = tuple(math.nan if row[f"{SEED}{seed}"] is None else float(row[f"{SEED}{seed}"]) for seed in seeds)
            difference = None if row["difference"] is None else (float(row["difference"]), row["low"], row["high"])
            fusion = str(row.get("fusion") or "")
            found.append(Comparison(str(row["metric"]), str(row["method"]), values, difference, fusion, choose))
        if not found or not seeds:
            raise ValueError("no rows")
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"Expected {str(path)!r} to be the table of a comparison, but it does not read ({error}). Write it again: "
            "repeat agm compare with its --out, which repeats no finished run."
        ) from error


def comparison_grid(comparisons: Sequence[Comparison], links: Mapping[str, str]) -> Grid:
    """A row a figure and method: mean and deviation, the paired difference with its interval, and the claim.

    Args:
        comparisons: of one fusion.
        links: method -> a place in the page; may be without it.
    """
    first, shown = comparisons[0].method, ""
    rows: list[tuple[Cell | str, ...]] = []
    for c in comparisons:
        claims = c.verdict in ("higher", "lower")
        if c.metric != shown:
            rows.append((title_of(c.metric),))
        shown = c.metric
        method = Cell((c.method,), link=links.get(c.method, ""))
        claim = c.verdict if claims or not c.verdict else "none"
        rows.append((method, spread(c), Cell((interval(c),), strong=claims), claim))
    note = "Claim none: the interval holds 0 (or there is none), so no difference can be claimed."
    return Grid(("method", "mean ± sd", f"difference to {first} [95 %]", "claim"), tuple(rows), note)


def compared(comparisons: Sequence[Comparison], drawing: Drawing) -> Figures:
    """The figures in percent: a dot a seed, and each method's mean with its interval."""
    methods = len({c.method for c in comparisons})
    width = 3.6 if methods <= MANY else 0.8 + 0.75 * methods
    drawn = [
        drawing.panel(partial(_clipped, panel), f"{shares(comparisons)} of the methods, a dot a seed", width, 2.9)
        for row in comparison_panels(comparisons)
        for panel in row
    ]
    note = "Percent of the test split: a dot a seed, beside them the mean with its 95 % interval; lines join a seed."
    return Figures((), tuple(drawn), note, wide=methods > MANY)


def _clipped(panel: Panel, axes: Axes) -> None:
    """Intervals of few seeds reach far beyond what an accuracy can be."""
    panel(axes)
    low, high = axes.get_ylim()
    dots = np.concatenate([np.asarray(dots.get_offsets(), dtype=float)[:, 1] for dots in axes.collections])
    axes.set_ylim(max(low, 0) if np.nanmin(dots) >= 0 else low, min(high, 100))


def _is_first(metric: str) -> bool:
    """Whether it is what a comparison is made for."""
    return metric == "accuracy" or metric.startswith("response_")


def _config(folder: Path) -> Config | None:
    path = folder / "compare.toml"
    return read_config(path) if path.exists() else None


def _seeds(rows: Sequence[Row]) -> list[str]:
    return [name.removeprefix(SEED) for name in (rows[0] if rows else {}) if name.startswith(SEED)]


def _place(anchor: str, fusion: str, method: str) -> str:
    return f"{anchor}-{run_name(f'{fusion}-{method}', 0)}"


def _run(folder: Path, fusion: str, method: str, seed: str) -> RunFolder:
    return RunFolder((folder / fusion if fusion else folder) / run_name(method, int(seed)))


def _runs(folder: Path, comparisons: Sequence[Comparison], seeds: Sequence[str], anchor: str) -> Grid:
    rows: list[tuple[Cell | str, ...]] = []
    for found in (c for c in comparisons if c.metric == "accuracy"):
        cells: list[Cell | str] = []
        for value in found.values:
            cells.append("diverged" if math.isnan(value) else percent(value))
        name = f"{found.fusion}: {found.method}" if found.fusion else found.method
        where = _run(folder, found.fusion, found.method, seeds[0])
        told = str(where.path.parent / run_name(found.method, 0)).removesuffix("0") + "*"
        rows.append((Cell((name,), anchor=_place(anchor, found.fusion, found.method)), *cells, told))
    head = (f"joint {rightness({c.metric for c in comparisons})}, %", *(f"seed {seed}" for seed in seeds), "folders")
    return Grid(head, tuple(rows), "For the page of one run: agm report with its folder.")


def _curves(folder: Path, comparisons: Sequence[Comparison], seeds: Sequence[str], drawing: Drawing) -> Figures | None:
    fusions = list(dict.fromkeys(c.fusion for c in comparisons))
    methods = list(dict.fromkeys(c.method for c in comparisons if c.metric == "accuracy"))
    drawn = []
    for fusion in fusions:
        histories: dict[str, list[list[Row]]] = {}
        for method in methods:
            runs = [_run(folder, fusion, method, seed) for seed in seeds]
            tables = [read_table(run.metrics) for run in runs if run.metrics.exists()]
            if tables := [table for table in tables if table]:
                histories[method] = tables
        columns = list(dict.fromkeys(name for tables in histories.values() for name in tables[0][0]))
        for metric in filter(_is_first, columns):
            title = f"{fusion}: {title_of(metric)}" if fusion else title_of(metric)
            panel: Panel = partial(_draw_histories, histories, metric, title, colours_of(methods))
            drawn.append(drawing.panel(panel, f"{title} over the epochs"))
    if not drawn:
        return None
    key = tuple((name, variable_of(colour)) for name, colour in colours_of(methods).items())
    return Figures(key, tuple(drawn), "Percent of the watched split over the epochs: thin a seed, thick their mean.")


def _draw_histories(
    histories: Mapping[str, Sequence[Sequence[Row]]], metric: str, title: str, colours: Mapping[str, str], axes: Axes
) -> None:
    axes.set_title(title)
    for method, tables in histories.items():
        series = [_shares(table, metric) for table in tables]
        for values in series:
            axes.plot(np.arange(1, len(values) + 1), values, color=colours[method], alpha=0.3, linewidth=0.6)
        least = min(map(len, series))
        mean = np.mean([values[:least] for values in series], axis=0)
        axes.plot(np.arange(1, least + 1), mean, color=colours[method])
    axes.set_xlabel("epoch")
    axes.set_ylabel("%")


def _shares(table: Sequence[Row], metric: str) -> Any:
    values = [row.get(metric) for row in table]
    return 100 * np.array([value if isinstance(value, (int, float)) else np.nan for value in values], dtype=float)
