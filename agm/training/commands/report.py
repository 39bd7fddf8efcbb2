"""`agm report`: runs, comparisons and studies as one page."""

from __future__ import annotations

from typing import Any

import click

from agm.training.commands.as_json import AS_JSON, comparison_values, result_values, terminal, write_json
from agm.training.commands.outcome import require
from agm.training.report.comparison_section import ComparisonSection
from agm.training.report.document import Section, write_report
from agm.training.report.run_section import RunSection
from agm.training.report.study_section import StudySection

__all__ = ["report_command"]


@click.command("report")
@click.argument("folders", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--output",
    metavar="FILE.html",
    help="The page; a report that is there is replaced.  [default: report.html, in RUN if there is one]",
)
@click.option("--dataset", metavar="DATA", help="Where the data of the runs are now, if they moved since.")
@click.option(
    "--samples", type=int, default=6, show_default=True, help="Most, and as many least, balanced samples of a run."
)
@AS_JSON
def report_command(
    folders: tuple[str, ...], output: str | None, dataset: str | None, samples: int, as_json: bool
) -> None:
    """Make one page of HTML that stands alone: no network, no other file.

    Of a run: figures, curves, confusions of the network and of each modality alone, contributions, the most and the
    least balanced samples, settings and environment. Of a folder of agm compare, of a study or of agm competition:
    their tables and pictures. Several folders share a page.

    \b
    agm report runs/clipart-late-agm-seed0
    agm report runs/compare --output compare.html
    """
    require("matplotlib", "jinja2", "scipy")
    console = terminal(as_json)
    path, sections = write_report(folders, output, dataset=dataset, samples=samples)
    console.say(f"report: {path}")
    if as_json:
        write_json({"report": str(path), "sections": [_values(section) for section in sections]})


def _values(section: Section) -> dict[str, Any]:
    """The figures of a section."""
    head = {"kind": section.kind, "folder": section.folder}
    if isinstance(section, RunSection):
        found = section.predictions.contributions
        own = {} if found is None else {"contributions": found.contributions, "cooperation": found.cooperation}
        matrices = {matrix.title: [row[2] for row in matrix.rows] for matrix in section.confusions}
        counts = {title: [[count for count, _ in row] for row in rows] for title, rows in matrices.items()}
        chosen = {
            "least_balanced": [sample.number for sample in section.unbalanced],
            "most_balanced": [sample.number for sample in section.balanced],
        }
        return head | result_values(section.result) | own | {"split": section.split, "confusions": counts} | chosen
    if isinstance(section, ComparisonSection):
        return head | {"comparisons": [comparison_values(one) for one in section.comparisons]}
    if isinstance(section, StudySection):
        tasks = {task: [comparison_values(one) for one in found] for task, found in section.comparisons.items()}
        return head | {"tasks": tasks}
    return head | {"rows": section.rows}
