"""The page: what is on it, and how it is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import agm
from agm.data._files import open_ordinary
from agm.training.errors import UserError
from agm.training.printable import printable
from agm.training.report.comparison_section import ComparisonSection, comparison_section
from agm.training.report.competition_section import CompetitionSection, competition_section
from agm.training.report.run_section import RunSection, run_section
from agm.training.report.sections import Cell, Grid, percent
from agm.training.report.sources import kind_of_folder
from agm.training.report.study_section import StudySection, study_section
from agm.training.report.vector import Drawing
from agm.training.writing import write_text

__all__ = ["Section", "default_output", "write_report"]

Section = RunSection | ComparisonSection | StudySection | CompetitionSection

MARK = '<meta name="generator" content="agm report">'  # by which a report is known again
NAME = "report.html"


def default_output(folders: Sequence[str | os.PathLike[str]]) -> Path:
    """Where a report goes: into the folder that it is of, or beside the caller where there are several."""
    return Path(folders[0]) / NAME if len(folders) == 1 else Path(NAME)


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    dataset: str | None = None,
    samples: int = 6,
) -> tuple[Path, list[Section]]:
    """Write a page of HTML that stands alone: no script, no other file, nothing from a network.

    >>> path, sections = write_report(["runs/clipart-late-agm-seed0"])  # doctest: +SKIP
    >>> sections[0].predictions.contributions.contributions  # doctest: +SKIP
    {'image': 0.12, 'title': 0.21, 'keywords': 0.29}

    Args:
        folders: of `agm train`, `agm compare`, a study, or `agm competition`, one or more.
        output: the file; `default_output` by default. A report that is there is replaced.
        dataset: where the data of the runs are, if they moved since.
        samples: how many of the most and of the least balanced samples of a run are shown.

    Returns:
        The file, and what it tells, a section a folder.

    Raises:
        UserError: a folder that is none of these, a run without a finished epoch, data that are not there, or a file
            in the way that is no report.
    """
    if samples < 0:
        raise UserError(f"Expected --samples to be an integer >= 0, but got {samples}. Use for example --samples 6.")
    if not folders:
        raise UserError("Expected argument `folders` to be one folder or more, but got none. Give the folder of a run.")
    path = default_output(folders) if output is None else Path(output)
    _check_in_the_way(path)
    drawing = Drawing()
    sections = [
        _section(Path(folder), f"part-{place}", drawing, dataset, samples) for place, folder in enumerate(folders, 1)
    ]
    write_text(path, _rendered(sections))
    return path, sections


def _section(folder: Path, anchor: str, drawing: Drawing, dataset: str | None, samples: int) -> Section:
    kind = kind_of_folder(folder)
    if kind == "run":
        return run_section(folder, anchor, drawing, dataset=dataset, samples=samples)
    if kind == "comparison":
        return comparison_section(folder, anchor, drawing)
    if kind == "study":
        return study_section(folder, anchor, drawing)
    return competition_section(folder, anchor, drawing)


def _check_in_the_way(path: Path) -> None:
    if not path.exists():
        return
    if path.is_dir():
        raise UserError(
            f"Expected --output to be a file, but got the folder {str(path)!r}. Name a file in it, such as {NAME}."
        )
    with open_ordinary(path) as file:
        head = file.read(4096)
    if MARK.encode() not in head:
        raise UserError(
            f"Expected {str(path)!r} to be a report or nothing, but got another file, which is not replaced. Choose "
            "another with --output."
        )


def _rendered(sections: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("agm.training.report"),
        autoescape=True,  # names of modalities and classes come from files of others
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["percent"] = percent
    environment.tests["cell"] = lambda value: isinstance(value, Cell)
    title = sections[0].title if len(sections) == 1 else f"{len(sections)} results"
    return environment.get_template("page.html").render(
        title=title, sections=sections, version=agm.__version__, overview=_overview(sections)
    )


def _overview(sections: Sequence[Section]) -> Grid | None:
    """The runs of a page against each other; None for fewer than two."""
    runs = [section for section in sections if isinstance(section, RunSection)]
    if len(runs) < 2:
        return None
    modalities = list(dict.fromkeys(name for run in runs for name in run.result.modalities))
    rows: list[tuple[Cell | str, ...]] = []
    for run in runs:
        accuracy = Cell((percent(run.figures["accuracy"]),), strong=True)
        responses = [percent(run.figures.get(f"response_{name}")) for name in modalities]
        rows.append((Cell((run.title,), link=run.anchor), run.split, accuracy, *responses))
    head = ("run", "split", "joint, %", *(f"{name} response, %" for name in modalities))
    note = "Single runs: what they allow to claim of methods is for agm compare, which pairs seeds."
    return Grid(head, tuple(rows), note)
