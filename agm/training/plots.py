"""Pictures of a run and of a comparison. matplotlib is imported when a picture is drawn, and no window opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agm.training.answers import rightness
from agm.training.compare import Comparison, mean_interval
from agm.training.competition import Competition
from agm.training.drawing import APART_COLOUR, COLOURS, JOINT, Panel, grid_of, set_title, styled, write_figure
from agm.training.exports import is_share, title_of
from agm.training.run_folder import Row, RunFolder, read_table
from agm.training.unimodal_runs import APART

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "colours_of",
    "comparison_figure",
    "comparison_panels",
    "competition_colours",
    "competition_figure",
    "competition_panels",
    "draw_comparison",
    "draw_competition",
    "draw_run",
    "read_rows",
    "training_figure",
    "training_panels",
]

Rows = Sequence[Mapping[str, Any]]


def draw_run(folder: str | Path, title: str) -> Path:
    """Draw training.png from the tables of a run, finished or not; returns its path.

    Raises:
        UserError: the folder has no tables.
    """
    run = RunFolder(Path(folder))
    write_figure(training_figure(*read_rows(run), title), run.picture)
    return run.picture


def read_rows(run: RunFolder) -> tuple[list[Row], list[Row]]:
    """Rows of metrics.csv, and those of steps.csv up to the last whole epoch.

    Raises:
        UserError: the folder has no tables.
    """
    metrics = [row for row in read_table(run.metrics) if isinstance(row.get("step"), int)]
    done = metrics[-1]["step"] if metrics else 0
    return metrics, read_table(run.steps, lambda row: row["step"] <= done)


def draw_comparison(path: Path, comparisons: Sequence[Comparison], title: str) -> None:
    """Write the picture of a comparison to `path`."""
    write_figure(comparison_figure(comparisons, title), path)


def draw_competition(path: Path, competition: Competition, title: str) -> None:
    """Write the picture of a measurement of competition strength to `path`."""
    write_figure(competition_figure(competition, title), path)


@styled
def training_figure(metrics: Rows, steps: Rows, title: str) -> Figure:
    """Small multiples over the steps.

    Args:
        metrics: rows of metrics.csv.
        steps: rows of steps.csv; scores, ratios and coefficients have panels if the run has them.
        title: of the whole figure.
    """
    panels = training_panels(metrics, steps)
    columns = max(map(len, panels))
    figure, grid = grid_of(len(panels), columns, 3.6 * columns, 0.7 + 2.6 * len(panels), sharex=True)
    for row, own in zip(grid, panels, strict=True):
        for axes, draw in zip(row, own, strict=False):
            draw(axes)
        for axes in row[len(own) :]:
            axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
    set_title(figure, title)
    _key(figure, {"joint": JOINT, **colours_of(_modalities(metrics))})
    return figure


def training_panels(metrics: Rows, steps: Rows) -> list[list[Panel]]:
    """The panels of `training_figure`: a row over the epochs, and one over the steps if the run tells of them.

    Args:
        metrics: rows of metrics.csv.
        steps: rows of steps.csv.
    """
    names = _modalities(metrics)
    colours = colours_of(names)
    split = metrics[0]["split"] if metrics else "test"
    of_epochs: list[Panel] = [
        lambda axes: _draw_loss(axes, metrics, steps, split),
        lambda axes: _draw_accuracies(axes, metrics, colours, split),
    ]
    if any(_has(metrics, f"absent_{name}") for name in names):
        of_epochs.append(lambda axes: _draw_absent(axes, metrics, colours, split))
    kinds = (
        ("score", partial(_draw_scores, unit=_unit(metrics, of_scores=True))),
        ("ratio", _draw_ratios),
        ("coefficient", _draw_coefficients),
    )
    of_steps: list[Panel] = [
        partial(draw, rows=steps, colours=colours)
        for kind, draw in kinds
        if any(_has(steps, f"{kind}_{name}") for name in names)
    ]
    return [of_epochs, of_steps] if of_steps else [of_epochs]


def _measure(metrics: Rows) -> str:
    return "R²" if _has(metrics, "mae") else "accuracy"


def _unit(metrics: Rows, of_scores: bool = False) -> str:
    """What the loss is, or a score of AGM, by the task, which the further figures tell."""
    if _has(metrics, "mae"):
        return "logarithm of the error" if of_scores else "error"
    return "binary cross-entropy" if _has(metrics, "micro_f1") else "cross-entropy"


def _modalities(metrics: Rows) -> list[str]:
    head = metrics[0] if metrics else {}
    return [column.removeprefix("response_") for column in head if column.startswith("response_")]


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of these modalities or methods."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


@styled
def comparison_figure(comparisons: Sequence[Comparison], title: str) -> Figure:
    """Joint accuracy and responses side by side: a dot a seed, the mean with its 95 % confidence interval.

    Thin lines join the runs of one seed, for the differences are paired. A row a fusion, where several are compared.
    """
    panels = comparison_panels(comparisons)
    columns, methods = max(map(len, panels)), len({c.method for c in comparisons})
    width = 0.8 + columns * (0.9 + 0.8 * methods)
    figure, grid = grid_of(len(panels), columns, max(width, 5.5), 0.4 + 3.2 * len(panels), sharey=True)
    for row, own in zip(grid, panels, strict=True):
        for axes, draw in zip(row, own, strict=True):
            draw(axes)
        row[0].set_ylabel(f"test {rightness({c.metric for c in comparisons})}, %")
    # Intervals of few seeds reach far beyond what an accuracy can be.
    low, high = grid[0][0].get_ylim()
    low, high = max(low, 0), min(high, 100)
    if low < high:  # the share of the variance explained may be below 0 everywhere
        grid[0][0].set_ylim(low, high)
    set_title(figure, title)
    return figure


def comparison_panels(comparisons: Sequence[Comparison]) -> list[list[Panel]]:
    """The panels of `comparison_figure`: a row a fusion, a panel a figure in percent."""
    shown = [c for c in comparisons if is_share(c.metric) and not c.metric.startswith("absent_")]
    metrics = list(dict.fromkeys(c.metric for c in shown))
    methods = list(dict.fromkeys(c.method for c in shown))
    return [
        [partial(_draw_compared, shown, metric, fusion, methods) for metric in metrics]
        for fusion in dict.fromkeys(c.fusion for c in shown)
    ]


def _draw_compared(shown: Sequence[Comparison], metric: str, fusion: str, methods: Sequence[str], axes: Axes) -> None:
    values = {c.method: 100 * np.array(c.values) for c in shown if (c.metric, c.fusion) == (metric, fusion)}
    _draw_dots(axes, [values.get(method) for method in methods])
    axes.set_title(f"{fusion}: {title_of(metric)}" if fusion else title_of(metric))
    axes.set_xticks(range(len(methods)), [_broken(method) for method in methods], fontsize=9)
    axes.set_xlim(-0.6, len(methods) - 0.4)
    axes.grid(visible=False, axis="x")


def _broken(method: str) -> str:
    """A method's label over several lines, so that its neighbours have room."""
    return method.replace(":", "\n").replace("(", "\n").replace(",", "\n").replace(")", "")


@styled
def competition_figure(competition: Competition, title: str) -> Figure:
    """Strength over the epochs, a panel a modality and a line a method, with intervals; dotted: trained apart."""
    panels = competition_panels(competition.rows, competition.modalities)
    figure, grid = grid_of(1, len(panels), max(3.2 * len(panels), 5.5), 3.4, sharex=True, sharey=True)
    for axes, draw in zip(grid[0], panels, strict=True):
        draw(axes)
    grid[0][0].set_ylabel("competition strength")
    grid[0][0].set_ylim(bottom=0)
    set_title(figure, title)
    _key(figure, {**competition_colours(competition.methods), "trained apart": APART_COLOUR})
    return figure


def competition_colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method that was measured."""
    own = colours_of([method for method in methods if method != "joint"])
    return {method: own.get(method, JOINT) for method in methods}


def competition_panels(rows: Rows, modalities: Sequence[str]) -> list[Panel]:
    """The panels of `competition_figure`, one a modality, from rows of competition.csv, the run's or the folder's."""
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != APART)
    colours = competition_colours(list(methods))
    return [partial(_draw_strengths, rows, colours, modality) for modality in modalities]


def _draw_strengths(rows: Rows, colours: Mapping[str, str], modality: str, axes: Axes) -> None:
    axes.set_title(modality)
    axes.set_xlabel("epochs")
    own = [row for row in rows if row["modality"] == modality]
    for apart in [row for row in own if row["method"] == APART][-1:]:
        axes.axhspan(apart["low"], apart["high"], color=APART_COLOUR, alpha=0.18, linewidth=0)
        axes.axhline(apart["strength"], color=APART_COLOUR, linestyle=":")
    for method, colour in colours.items():
        found = [row for row in own if row["method"] == method]
        epochs = _column(found, "epochs")
        axes.fill_between(epochs, _column(found, "low"), _column(found, "high"), color=colour, alpha=0.18, linewidth=0)
        axes.plot(epochs, _column(found, "strength"), color=colour)
    axes.set_xlim(left=0)


def _key(figure: Figure, colours: Mapping[str, str]) -> None:
    """One key for all panels: a colour means the same in each of them."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _draw_loss(axes: Axes, metrics: Rows, steps: Rows, split: str) -> None:
    axes.set_title(f"loss: solid {split}, dotted training")
    axes.plot(_column(steps, "step"), _column(steps, "loss"), color=JOINT, alpha=0.2, linewidth=0.6)
    axes.plot(_column(metrics, "step"), _column(metrics, "train_loss"), color=JOINT, linestyle=":")
    axes.plot(_column(metrics, "step"), _column(metrics, "loss"), color=JOINT)
    # A single wild step must not flatten the rest.
    shown = np.concatenate([_column(metrics, "loss"), _column(metrics, "train_loss"), _column(steps, "loss")[:1]])
    shown = shown[np.isfinite(shown)]
    if len(shown):
        axes.set_ylim(0, 1.1 * shown.max())
    axes.set_ylabel(_unit(metrics))


def _draw_accuracies(axes: Axes, metrics: Rows, colours: Mapping[str, str], split: str) -> None:
    axes.set_title(f"{split} {_measure(metrics)}: joint, each response")
    for name, colour in colours.items():
        axes.plot(_column(metrics, "step"), 100 * _column(metrics, f"response_{name}"), color=colour)
    axes.plot(_column(metrics, "step"), 100 * _column(metrics, "accuracy"), color=JOINT)
    _percent(axes)


def _draw_absent(axes: Axes, metrics: Rows, colours: Mapping[str, str], split: str) -> None:
    axes.set_title(f"{split} {_measure(metrics)} with it taken away")
    for name, colour in colours.items():
        axes.plot(_column(metrics, "step"), 100 * _column(metrics, f"absent_{name}"), color=colour)
    axes.plot(_column(metrics, "step"), 100 * _column(metrics, "accuracy"), color=JOINT, linestyle=":")
    _percent(axes)


def _percent(axes: Axes) -> None:
    axes.set_ylabel("%")
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    # Of numbers the share of the variance explained, which is below 0 where naming the mean would be better.
    least = np.nanmin(drawn) if np.isfinite(drawn).any() else 0.0
    axes.set_ylim(0 if least >= 0 else max(1.1 * least, -100), 100)


def _draw_scores(axes: Axes, rows: Rows, colours: Mapping[str, str], unit: str) -> None:
    # Of AGM, which tells a reference too; other strategies say in their docstrings what they score.
    responses = any(_has(rows, f"reference_ratio_{name}") for name in colours)
    axes.set_title("score of each response" if responses else "score of each modality")
    for name, colour in colours.items():
        _noisy(axes, rows, f"score_{name}", colour)
    axes.set_ylabel(unit if responses else "score")
    if not any((_column(rows, f"score_{name}") < 0).any() for name in colours):
        axes.set_ylim(bottom=0)


def _draw_ratios(axes: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    compared = any(_has(rows, f"reference_ratio_{name}") for name in colours)
    axes.set_title("ratio: solid batch, dotted reference" if compared else "ratio")
    for name, colour in colours.items():
        _noisy(axes, rows, f"ratio_{name}", colour)
        if not compared:
            continue
        reference = _column(rows, f"reference_ratio_{name}")
        axes.plot(_column(rows, "step"), reference, color=colour, linestyle=":")
    _around_one(axes, rows, "ratio", colours)


def _draw_coefficients(axes: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    axes.set_title("modulation coefficient")
    for name, colour in colours.items():
        _noisy(axes, rows, f"coefficient_{name}", colour)
    _around_one(axes, rows, "coefficient", colours)


def _around_one(axes: Axes, steps: Rows, kind: str, names: Mapping[str, str]) -> None:
    """A logarithmic axis, on which twice and half are as far from 1, as wide as the running means need it."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.axhline(1, color="#777777", linewidth=0.8)
    axes.set_yscale("log")
    means = np.concatenate([_smooth(_column(steps, f"{kind}_{name}")) for name in names])
    means = means[np.isfinite(means)].clip(0.01, 100)
    if len(means):
        axes.set_ylim(min(means.min(), 0.8) / 1.3, max(means.max(), 1.25) * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _noisy(axes: Axes, steps: Rows, column: str, colour: str) -> None:
    """Every step, faint, and their running mean."""
    step, values = _column(steps, "step"), _column(steps, column)
    axes.plot(step, values, color=colour, alpha=0.22, linewidth=0.6)
    axes.plot(step, _smooth(values), color=colour)


def _smooth(values: np.ndarray) -> np.ndarray:
    return _running_mean(values, max(1, len(values) // 40))


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` values around each, fewer at the ends; NaN has no part in it and stays NaN."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _draw_dots(axes: Axes, groups: Sequence[np.ndarray | None]) -> None:
    present = [(place, values) for place, values in enumerate(groups) if values is not None]
    if len(present) > 1:
        places, values = zip(*present, strict=True)
        axes.plot(places, np.stack(values), color="#BBBBBB", linewidth=0.8, zorder=1)
    for place, values in present:
        colour = COLOURS[place % len(COLOURS)]
        axes.scatter([place] * len(values), values, s=18, color=colour, alpha=0.6, linewidths=0, zorder=2)
        known = values[np.isfinite(values)].tolist()  # of the runs that did not diverge
        if not known:
            continue
        mean, low, high = mean_interval(known)
        bars = None if low is None or high is None else [[mean - low], [high - mean]]
        axes.errorbar([place + 0.22], [mean], yerr=bars, fmt="o", markersize=6, color=colour, capsize=3, zorder=3)
        axes.annotate(f"{mean:.1f}", (place + 0.22, mean), (6, 0), textcoords="offset points", va="center", size=8)


def _column(rows: Rows, name: str) -> np.ndarray:
    values = [row.get(name) for row in rows]
    return np.array([value if isinstance(value, (int, float)) else np.nan for value in values], dtype=float)


def _has(rows: Rows, name: str) -> bool:
    return any(row.get(name) is not None for row in rows)
