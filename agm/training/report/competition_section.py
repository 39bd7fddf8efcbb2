"""A measurement of competition strength as a section of a page: from competition.csv, which `agm competition` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agm.training.competition_observer import COLUMNS
from agm.training.config import read_config
from agm.training.drawing import APART_COLOUR
from agm.training.errors import UserError
from agm.training.plots import competition_colours, competition_panels
from agm.training.report.sections import Cell, Figures, Grid
from agm.training.report.vector import Drawing, variable_of
from agm.training.run_folder import Row, read_table
from agm.training.unimodal_runs import APART

__all__ = ["CompetitionSection", "competition_section"]


@dataclass(frozen=True)
class CompetitionSection:
    """What a page tells of it; its template is `competition.html`.

    Args:
        anchor: its place in the page.
        title: dataset, fusion and seed.
        folder: as it was given.
        table: the strengths of the trained networks.
        figures: strengths over the epochs.
        rows: of competition.csv.
    """

    anchor: str
    title: str
    folder: str
    table: Grid
    figures: Figures
    rows: tuple[Row, ...]

    kind = "competition"


def competition_section(folder: Path, anchor: str, drawing: Drawing) -> CompetitionSection:
    """Gather it.

    Args:
        folder: of `agm competition`.
        anchor: its place in the page.
        drawing: of the page.

    Raises:
        UserError: the table has no rows.
    """
    rows = read_table(folder / "competition.csv", lambda row: row["epochs"] is None or row["epochs"] >= 0, COLUMNS)
    modalities = list(dict.fromkeys(str(row["modality"]) for row in rows))
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    if not rows:
        raise UserError(
            f"Expected {str(folder / 'competition.csv')!r} to be a table of competition strengths, but got no row that "
            "reads. Measure again with the same agm competition: finished runs are not repeated."
        )
    config = read_config(folder / "training.toml")
    trained = [method for method in methods if method != APART]
    drawn = [
        drawing.panel(panel, f"competition strength of {name} over the epochs")
        for panel, name in zip(competition_panels(rows, modalities), modalities, strict=True)
    ]
    colours = {**competition_colours(trained), "trained apart": APART_COLOUR}
    return CompetitionSection(
        anchor=anchor,
        title=f"{Path(config.dataset).stem}, {config.fusion} fusion, seed {config.seed}",
        folder=str(folder),
        table=_table(rows, methods, modalities),
        figures=Figures(tuple((name, variable_of(colour)) for name, colour in colours.items()), tuple(drawn)),
        rows=tuple(rows),
    )


def _table(rows: Sequence[Row], methods: Sequence[str], modalities: Sequence[str]) -> Grid:
    found: list[tuple[Cell | str, ...]] = []
    for method in methods:
        cells = []
        for name in modalities:
            own = [row for row in rows if (row["method"], row["modality"]) == (method, name)][-1:]
            cells.append("".join(f"{row['strength']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in own))
        found.append((method, *cells))
    return Grid(
        ("method", *modalities),
        tuple(found),
        "Of the trained networks, with 95 % intervals over the samples. 0: all that a modality could teach alone can "
        f"be read from the fused features; near 1: nothing of it. {APART}: networks of one modality each, side by "
        "side, without competition: what the measurement itself leaves.",
    )
