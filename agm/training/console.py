"""What the command line shows: progress, and tables of results, comparisons and backends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from agm import Contributions
from agm.ops._backends import Services
from agm.training.answers import rightness, task_of_figures
from agm.training.compare import Comparison
from agm.training.competition import Competition
from agm.training.config import Config
from agm.training.errors import DivergedError
from agm.training.exports import EPOCHS, interval, remark, shares, spread, title_of
from agm.training.observer import Observer
from agm.training.printable import printable
from agm.training.result import Result
from agm.training.tune import Trial, chosen, ranked
from agm.training.unimodal_runs import APART

__all__ = [
    "Progressing",
    "Terminal",
    "comparison_table",
    "competition_table",
    "contribution_table",
    "key_value_table",
    "result_table",
    "service_table",
    "trials_table",
]


class Terminal(Console):
    """Where commands print. Names that they show cannot move the cursor, change colours or break lines.

    What rich would take for markup or highlight is text.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, stderr=stderr)

    def say(self, text: str) -> None:
        """One line, however long."""
        self.print(printable(text), soft_wrap=True)

    def suggest(self, commands: Sequence[tuple[str, str]]) -> None:
        """Commands that people want next, and what for."""
        self.say("next:")
        for command, purpose in commands:
            self.say(f"  {command}  # {purpose}")

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.replace("\n", "").isprintable():
                yield segment
            else:
                lines = segment.text.split("\n")
                yield segment._replace(text="\n".join(map(printable, lines)))


class Progressing(Observer):
    """A progress bar on a terminal, a line an epoch elsewhere. Use as a context.

    Args:
        console: where it is shown.
        label: of the run.
        brief: for one run of many: no lines of epochs, and one line for all of it by `summarise`.
    """

    def __init__(self, console: Console, label: str = "", brief: bool = False) -> None:
        self.epochs = 0  # finished ones, also of the run that is continued
        self.total = 0
        self._began = 0
        self._console, self._label, self._brief = console, label, brief
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("epochs"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
                transient=brief,
            )

    def __enter__(self) -> Progressing:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, folder: Path, config: Config, epoch: int, steps: int) -> None:
        self.epochs, self.total, self._began = epoch, config.epochs, epoch
        if self._bar is not None:
            self._steps, self._done = steps, epoch * steps
            self._task = self._bar.add_task(
                printable(self._label) or "training", total=config.epochs, completed=epoch, figures=""
            )
        elif self._brief:
            pass
        elif epoch == config.epochs:
            self._line("finished before")
        elif epoch:
            self._line(f"continues after epoch {epoch}/{self.total}")

    def described(self, lines: Sequence[str]) -> None:
        if not self._brief:
            for line in lines:
                self._line(line)

    def doubted(self, doubt: str) -> None:
        if not self._brief:
            self._line(f"note: {doubt}")

    def stepped(self) -> None:
        if self._bar is not None:
            self._done += 1
            self._bar.update(self._task, completed=self._done / self._steps)

    def epoch_finished(self, row: Mapping[str, Any]) -> None:
        self.epochs = row["epoch"]
        figures = f"loss {row['train_loss']:.3f}  {row['split']} {rightness(row)} {100 * row['accuracy']:.1f} %"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.epochs, figures=figures)
        elif not self._brief:
            self._line(f"epoch {self.epochs}/{self.total}  {figures}  {row['seconds']:.1f} s")

    def diverged(self, error: DivergedError) -> None:
        self._line(f"no figures. {error}")

    def summarise(self, result: Result, whole: bool = False) -> None:
        """One line for a finished run, with the time of its epochs from here on, or of the `whole` of it."""
        seconds = sum(row["seconds"] for row in result.history[0 if whole else self._began :])
        time = f"{seconds:.1f} s" if whole or self.epochs > self._began else "finished before"
        accuracy = f"{rightness(result.evaluation.further)} {100 * result.evaluation.accuracy:.1f} %"
        self._line(f"{accuracy} after epoch {len(result.history)}  {time}")

    def _line(self, text: str) -> None:
        line = f"{self._label}  {text}" if self._label else text
        self._console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


_MEASURES = {
    "classes": "Percent correct",
    "labels": "Percent of the labels that are right",
    "numbers": "Percent of the variance explained",
}


def result_table(result: Result) -> Group:
    """The figures of a run, one row a modality."""
    figures, row = result.evaluation, result.history[-1]
    table = Table()
    for name in ("", rightness(figures.further), "response", "without it", "coefficient", "score"):
        table.add_column(name, justify="left" if name == "" else "right")
    table.add_row("joint", Text(f"{100 * figures.accuracy:.1f}", style="bold"), "", "", "", "")
    for name in result.modalities:
        table.add_row(
            _text(name),
            "",
            _percent(figures.responses.get(name)),
            _percent(figures.absent.get(name)),
            _number(row.get(f"coefficient_{name}")),
            _number(row.get(f"score_{name}")),
        )
    measure = _MEASURES[task_of_figures(figures.further)]
    return _framed(
        f"{result.config.method}, {result.config.fusion} fusion, epoch {len(result.history)} of "
        f"{result.config.epochs}: test split, {figures.samples} samples",
        table,
        f"{measure}: jointly, by the response of each modality, and without it; of the "
        f"{EPOCHS[result.config.choose]}, never of the one that did best on the test split. "
        "Coefficients and scores: means of the last epoch."
        + "".join(f" {title_of(name)} {value:.3f}." for name, value in figures.further.items()),
    )


def comparison_table(comparisons: Sequence[Comparison]) -> Group:
    """Mean, standard deviation and paired difference of every figure, a section a figure."""
    first = comparisons[0].method
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    table.add_column("mean ± sd", justify="right", no_wrap=True)
    table.add_column(Text(f"difference\nto {first} [95 %]", justify="right"), justify="right", no_wrap=True)
    table.add_column("claim", no_wrap=True)
    shown = ("", "")
    for comparison in comparisons:
        place = (comparison.fusion, comparison.metric)
        if place != shown:
            if shown[1]:
                table.add_section()
            title = f"{comparison.fusion}: " if comparison.fusion else ""
            table.add_row(_text(title + title_of(comparison.metric), "bold"))
        shown = place
        claims = comparison.verdict in ("", "higher", "lower")
        table.add_row(
            _text("  " + comparison.method),
            spread(comparison),
            Text(interval(comparison)),
            comparison.verdict if claims else "none",
        )
    legend = "claim none: the interval holds 0 (or there is none), so no difference can be claimed. "
    return _framed(f"test split, {shares(comparisons)} in percent", table, legend + remark(comparisons))


def trials_table(trials: Sequence[Trial]) -> Group:
    """Settings by their accuracy on the validation split."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in (
        ("settings", "left"),
        (f"{trials[0].measure} ± sd", "right"),
        ("loss", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    choice = chosen(trials)
    for trial in ranked(trials):
        if trial.diverged:
            table.add_row(_text(trial.variant.label), f"{trial.diverged} diverged", "", "")
            continue
        deviation = "" if trial.deviation is None else f" ± {100 * trial.deviation:.1f}"
        mark = "chosen" if trial is choice else ""
        table.add_row(_text(trial.variant.label), f"{100 * trial.accuracy:.1f}{deviation}", f"{trial.loss:.3f}", mark)
    seeds = len(trials[0].accuracies)
    return _framed(
        "validation split, in percent",
        table,
        f"{seeds} seed{'s' if seeds > 1 else ''}. The highest mean is chosen; its own figure "
        "here is too high, since it was chosen by it. The test split was not looked at.",
    )


def contribution_table(figures: Contributions) -> Group:
    """What each modality contributes to the test accuracy, one row a modality."""
    table = Table()
    for name in ("", "alone", "contribution", "value"):
        table.add_column(name, justify="left" if name == "" else "right")
    for name in figures.modalities:
        contribution = Text(f"{100 * figures.contributions[name]:+.1f}", style="bold")
        table.add_row(_text(name), _percent(figures.alone[name]), contribution, f"{figures.values[name]:+.2f}")
    table.add_section()
    table.add_row("cooperation", "", f"{100 * figures.cooperation:+.1f}", "")
    return _framed(
        f"contributions: from {100 * figures.empty:.1f} % (the most frequent class) to {100 * figures.accuracy:.1f} %",
        table,
        "Alone: percent correct with only this modality present. Contributions: points of accuracy that it adds, on "
        "average over all orders of adding modalities. Cooperation: points that they achieve together beyond the sum "
        "of what each achieves alone; below 0 they know the same. Values: means over the samples; they sum to the "
        "number of modalities where every sample is right.",
    )


def competition_table(competition: Competition) -> Group:
    """The strengths of the trained networks, a row a method."""
    table = Table()
    table.add_column("method", no_wrap=True)
    table.add_column("joint, %", justify="right", no_wrap=True)
    for name in competition.modalities:
        table.add_column(_text(name), justify="right", no_wrap=True)
    for method in (*competition.methods, APART):
        rows = [competition.last(method, name) for name in competition.modalities]
        cells = [f"{row['strength']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rows]
        table.add_row(Text(method), _percent(competition.accuracies.get(method)), *map(Text, cells))
    concepts = [_percent(competition.concepts[name]) for name in competition.modalities]
    table.add_section()
    table.add_row("concept, %", "", *concepts)
    samples = rows[0]["samples"]
    return _framed(
        f"competition strength of the trained networks: test split, {samples} samples",
        table,
        "0: all that a modality could teach alone can be read from the fused features; near 1: nothing of it. "
        f"With 95 % intervals over the samples, for these networks. {APART}: networks of one modality each, side "
        "by side, without competition: what the measurement itself leaves. Concept: percent correct of the "
        "network that the strength refers to.",
    )


def service_table(services: Services) -> Group:
    """Which backend serves each op, and below why the others do not."""
    rows = services.by_op()
    table = Table()
    for name in ("op", *next(iter(rows.values()))):
        table.add_column(name)
    for op, own in rows.items():
        table.add_row(op, *(Text(backend, style="bold") for backend in own.values()))
    others = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for (backend, reason), ops in services.reasons().items():
        of = "all operations" if len(ops) == len(rows) else ", ".join(ops)
        others.add_row(Text(backend), Text(f"{reason}: {of}", style="dim"))
    return Group(_framed("backends of the operations", table), _framed("not used, and why", others))


def key_value_table(title: str, values: Mapping[str, object]) -> Group:
    """Two columns."""
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for name, value in values.items():
        table.add_row(_text(name), Text(str(value)))
    return _framed(title, table)


def _framed(title: str, table: Table, remark: str = "") -> Group:
    """Titles and remarks stand outside: as parts of a table they wrap to its width."""
    below = [Text(remark, style="dim")] if remark else []
    return Group(_text(title, "bold"), table, *below)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _text(name: str, style: str = "") -> Text:
    return Text(printable(name), style=style)
