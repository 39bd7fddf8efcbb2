"""One run as a section of a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agm.data import MultimodalData, Split
from agm.data._files import read_text
from agm.training.answers import rightness, task_of_figures
from agm.training.competition_observer import COLUMNS
from agm.training.config import ENVIRONMENT, OPTIONS, Config, read_table_of, settings
from agm.training.described import described
from agm.training.drawing import JOINT, Panel
from agm.training.environment import reproducible
from agm.training.errors import UserError
from agm.training.exports import EPOCHS, run_command, title_of, title_of_run
from agm.training.plots import colours_of, competition_panels, read_rows, training_panels
from agm.training.report.balance import Sample, balanced_first, shown_samples, unbalanced_first
from agm.training.report.confusions import Confusion, LabelCounts, confusions, label_counts
from agm.training.report.predictions import Predictions, predict
from agm.training.report.sections import Cell, Figures, Grid, number, percent
from agm.training.report.vector import Drawing, variable_of
from agm.training.result import Final, Result
from agm.training.run_folder import RunFolder, read_table
from agm.training.samples import hold_out, load_data, on_device
from agm.training.trainer import load_run, recorded_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RunSection", "run_section"]

_MEASURES = {
    "classes": "Percent of the samples whose class is right",
    "labels": "Percent of the labels that are right",
    "numbers": "Percent of the variance that is explained",
}


@dataclass(frozen=True)
class RunSection:
    """What a page tells of a run; its template is `run.html`.

    Args:
        anchor: its place in the page.
        title: dataset, fusion, method and seed.
        folder: as it was given.
        split: that the figures are of.
        notice: why there are no final figures, and how to get them; empty for a finished run.
        headline: (name, figure) of what a reader looks for first.
        commands: what repeats the run.
        lines: the data and the network, in words.
        changed, unchanged, environment: settings that are not the defaults, the others, and versions.
        summary, contributions, strengths: tables; None where there is nothing to tell.
        curves, competition: figures.
        confusions, labels: of a task of classes, and of labels.
        errors: of a task of numbers.
        balanced, unbalanced: samples.
        ordered_by: what balance means here.
        figures: of the run as it recorded them, else of its last checkpoint; shares from 0 to 1.
        result: the run, evaluated anew.
        predictions: of every sample of the split.
    """

    anchor: str
    title: str
    folder: str
    split: str
    notice: str
    headline: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    lines: tuple[str, ...]
    changed: Grid
    unchanged: Grid
    environment: Grid
    summary: Grid
    contributions: Grid | None
    strengths: Grid | None
    curves: Figures | None
    competition: Figures | None
    confusions: tuple[Confusion, ...]
    labels: tuple[LabelCounts, ...]
    errors: Grid | None
    balanced: tuple[Sample, ...]
    unbalanced: tuple[Sample, ...]
    ordered_by: str
    figures: Mapping[str, Any]
    result: Result
    predictions: Predictions

    kind = "run"


def run_section(folder: Path, anchor: str, drawing: Drawing, *, dataset: str | None, samples: int) -> RunSection:
    """Gather it: the network of the last checkpoint is asked about every sample of the test split.

    Of a run that a choice of settings was made with, which must not look at the test split, of the validation split.

    Args:
        folder: of the run.
        anchor: its place in the page.
        drawing: of the page.
        dataset: where its data are, if they moved since.
        samples: how many of the most and of the least balanced samples are shown.

    Raises:
        UserError: no run, no finished epoch, or data that are not those of the run.
    """
    run = RunFolder(folder)
    recorded_config(run)
    recorded = run.read_result() if run.result.exists() else None
    final: Final = "validation" if recorded is not None and recorded.get("split") == "validation" else "test"
    result = load_run(folder, dataset, final=final)
    if not result.history:
        raise UserError(
            f"Expected {str(folder)!r} to have finished an epoch, but got none. Continue it: {run.resume_command}"
        )
    data, split = _split(result, final)
    device = torch.device(result.config.device)
    with reproducible(result.config):
        predictions = predict(result.network, on_device(split, result.modalities, device), result.modalities)
    task, several = predictions.task, len(result.modalities) > 1
    figures = recorded if recorded is not None else result.evaluation.columns()
    chosen = result.config
    shown = min(samples, len(split)) if several else 0

    def pictured(order: Sequence[int]) -> tuple[Sample, ...]:
        return tuple(shown_samples(order[:shown], predictions, split, result.modalities, data.class_names))

    quoted = shlex.quote(str(folder))
    changed, unchanged = _settings(chosen)
    return RunSection(
        anchor=anchor,
        title=title_of_run(chosen),
        folder=str(folder),
        split=final,
        notice="" if recorded is not None else _notice(result, run),
        headline=_headline(figures, result, task_of_figures(result.evaluation.further)),
        commands=(f"agm train --config {quoted}/config.toml", run_command(chosen)),
        lines=tuple(described(chosen, data.select(result.modalities), result.network)),
        changed=changed,
        unchanged=unchanged,
        environment=_environment(run),
        summary=_summary(figures, result),
        contributions=_contributions(predictions),
        strengths=_strengths(run),
        curves=_curves(run, result, drawing),
        competition=_competition(run, result, drawing),
        confusions=tuple(confusions(predictions, data.class_names)) if task == "classes" else (),
        labels=tuple(label_counts(predictions, data.class_names)) if task == "labels" else (),
        errors=_errors(predictions, data.class_names) if task == "numbers" else None,
        balanced=pictured(balanced_first(predictions)) if several else (),
        unbalanced=pictured(unbalanced_first(predictions)) if several else (),
        ordered_by=_ordered_by(predictions),
        figures=figures,
        result=result,
        predictions=predictions,
    )


def _split(result: Result, final: Final) -> tuple[MultimodalData, Split]:
    """The data as the run had them, and the samples that it is judged by, with its modalities alone."""
    data = hold_out(load_data(result.config), result.config)
    split = data.test if final == "test" or data.validation is None else data.validation
    return data, split.select(result.modalities)


def _notice(result: Result, run: RunFolder) -> str:
    return (
        f"This run is not finished: {len(result.history)} of {result.config.epochs} epochs. The figures are of its "
        f"last checkpoint. Go on with: {run.resume_command}"
    )


def _headline(figures: Mapping[str, Any], result: Result, task: str) -> tuple[tuple[str, str], ...]:
    accuracy = {"classes": "accuracy", "labels": "labels right", "numbers": "variance explained"}[task]
    further = [(title_of(name), f"{figures[name]:.3f}") for name in result.evaluation.further if name in figures]
    return (
        (accuracy, f"{percent(figures['accuracy'])} %"),
        ("loss", number(figures["loss"])),
        *further,
        ("samples", f"{result.evaluation.samples:,}"),
        ("epochs", str(len(result.history))),
    )


def _summary(figures: Mapping[str, Any], result: Result) -> Grid:
    row = result.history[-1]
    rows: list[tuple[Cell | str, ...]] = [
        (Cell(("joint",)), Cell((percent(figures["accuracy"]),), strong=True), "", "", "", "")
    ]
    for name in result.modalities:
        response, absent = figures.get(f"response_{name}"), figures.get(f"absent_{name}")
        coefficient, score = row.get(f"coefficient_{name}"), row.get(f"score_{name}")
        rows.append((name, "", percent(response), percent(absent), number(coefficient), number(score)))
    return Grid(
        ("", rightness(result.evaluation.further), "response", "without it", "coefficient", "score"),
        tuple(rows),
        f"{_MEASURES[task_of_figures(result.evaluation.further)]}: jointly, by the mono-modal response of each "
        "modality, and by the network with that modality absent. Coefficients and scores: means of the last epoch. "
        f"Weights of the {EPOCHS[result.config.choose]}.",
    )


def _contributions(predictions: Predictions) -> Grid | None:
    found = predictions.contributions
    if found is None:
        return None
    rows: list[tuple[Cell | str, ...]] = [
        (
            name,
            percent(found.alone[name]),
            Cell((percent(found.contributions[name], sign=True),), strong=True),
            f"{found.values[name]:+.2f}",
        )
        for name in found.modalities
    ]
    rows.append(("cooperation", "", percent(found.cooperation, sign=True), ""))
    return Grid(
        ("", "alone, %", "contribution", "value"),
        tuple(rows),
        f"From {percent(found.empty)} % (the most frequent class) to {percent(found.accuracy)} %. Alone: percent right "
        "with all other modalities absent. Contribution: points of accuracy that a modality adds, on average over all "
        "orders of adding modalities (Shapley value). Cooperation: points that they achieve together beyond the sum of "
        "what each achieves alone. Value: mean over the samples of what a modality is worth for one; they sum to the "
        "number of modalities where every sample is right.",
    )


def _settings(config: Config) -> tuple[Grid, Grid]:
    changed: list[tuple[Cell | str, ...]] = []
    unchanged: list[tuple[Cell | str, ...]] = []
    for spec in settings():
        value = getattr(config, spec.name)
        own = "none" if value is None else str(value)
        default = "none" if spec.default is None else str(spec.default)
        (unchanged if value == spec.default else changed).append((spec.name, own, default, spec.metadata["help"]))
    changed += [(f"{OPTIONS}.{name}", str(value), "", "of the method") for name, value in config.options.items()]
    head = ("setting", "value", "default", "")
    return Grid(head, tuple(changed)), Grid(head, tuple(unchanged))


def _environment(run: RunFolder) -> Grid:
    found = read_table_of(run.config, ENVIRONMENT)
    return Grid(("", ""), tuple((str(name), str(value)) for name, value in found.items()))


def _strengths(run: RunFolder) -> Grid | None:
    """That `agm compare --strength` or `agm competition` measured after the last epoch."""
    measured, rows = _competition_rows(run), []
    last = max((row["epochs"] for row in measured), default=0)
    for row in measured:
        if row["epochs"] == last:
            rows.append((row["modality"], number(row["strength"]), f"[{row['low']:.3f}, {row['high']:.3f}]"))
    if not rows:
        try:
            found = json.loads(read_text(run.path / "strength.json"))["strength"]
            rows = [(str(name), number(float(value)), "") for name, value in found.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not measured
    return Grid(
        ("", "strength", "95 % interval"),
        tuple(rows),
        "0: all that a modality could teach alone can be read from the fused features; near 1: nothing of it.",
    )


def _competition_rows(run: RunFolder) -> list[dict[str, Any]]:
    path = run.path / "competition.csv"
    return read_table(path, lambda row: row["epochs"] >= 0, COLUMNS) if path.exists() else []


def _competition(run: RunFolder, result: Result, drawing: Drawing) -> Figures | None:
    rows = _competition_rows(run)
    if len({row["epochs"] for row in rows}) < 2:
        return None
    panels = competition_panels(rows, result.modalities)
    drawn = [
        drawing.panel(panel, f"competition strength of {name} over the epochs")
        for panel, name in zip(panels, result.modalities, strict=True)
    ]
    return Figures((), tuple(drawn), "Competition strength over the epochs, with its 95 % interval.")


def _curves(run: RunFolder, result: Result, drawing: Drawing) -> Figures | None:
    metrics, steps = read_rows(run)
    if not metrics:
        return None
    drawn = [
        drawing.panel(partial(_over_steps, panel), f"{what} of the training, panel {place}")
        for what, row in zip(
            ("figures of each epoch", "figures of each step"), training_panels(metrics, steps), strict=False
        )
        for place, panel in enumerate(row, 1)
    ]
    colours = {"joint": JOINT, **colours_of(result.modalities)}
    return Figures(tuple((name, variable_of(colour)) for name, colour in colours.items()), tuple(drawn))


def _over_steps(panel: Panel, axes: Axes) -> None:
    panel(axes)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)


def _errors(predictions: Predictions, names: Sequence[str]) -> Grid:
    head: list[str] = ["root mean squared error"]
    columns = []
    for view in predictions.views:
        head.append(view.kind if view.kind == "joint" else f"{view.modality}, {view.kind}")
        error = (view.answers[view.has] - predictions.target[view.has]).double()
        columns.append(error.square().mean(0).sqrt().tolist())
    spread = predictions.target.double().var(0, correction=0).sqrt().tolist()
    rows = [
        (name, *(f"{own:.4g}" for own in values), f"{s:.4g}")
        for name, *values, s in zip(names, *columns, spread, strict=True)
    ]
    return Grid(
        (*head, "naming the mean"),
        tuple(rows),
        "Joint: of the network with all modalities. Response: of one modality's mono-modal response. Alone: with all "
        "other modalities absent. The last column is the standard deviation of the split.",
    )


def _ordered_by(predictions: Predictions) -> str:
    if predictions.contributions is not None:
        return (
            "Ordered by the difference between the largest and the smallest value of a sample's modalities (what each "
            "is worth for it, sample-level Shapley value), then by the difference of their scores (cross-entropy of "
            "each response). Of the balanced ones, those that the network is right about come first."
        )
    score = "mean binary cross-entropy" if predictions.task == "labels" else "squared error"
    return f"Ordered by the difference between the scores of a sample's modalities ({score} of each response)."
