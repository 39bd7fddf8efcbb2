"""The page of a study, from the tables in its folder alone."""

import re

import pytest

from agm.training import UserError
from agm.training.exports import interval, spread
from agm.training.report import write_report
from agm.training.study.pictures import ranks_figure
from agm.training.study.tables import write_tables


@pytest.fixture
def section(done, tmp_path):
    write_tables(tmp_path, done.figures, "agm compare tiny.toml")
    return write_report([tmp_path])[1][0]


def test_every_task_has_its_comparisons(done, section):
    assert list(section.comparisons) == list(done.figures.tasks)
    for task, found in section.comparisons.items():
        expected = done.figures.comparisons(task)
        assert [repr(one) for one in found] == [repr(one) for one in expected]  # of which some are NaN
        shown = [row[:3] for part in section.tasks if part.name == task for row in part.table.rows if len(row) > 1]
        assert [(m.text[0], s, d.text[0]) for m, s, d in shown] == [
            (one.method, spread(one), interval(one)) for one in expected
        ]


def test_methods_are_ranked_as_in_the_study(done, section):
    ranks = done.figures.ranking().ranks
    rows = section.overview.rows
    assert [row[0] for row in rows] == [*ranks, "ogm"]  # which is not defined for all tasks
    assert [row[1] for row in rows] == [*(f"{rank:.1f}" for rank in ranks.values()), ""]
    for place, task in enumerate(done.figures.tasks, 2):
        for row in rows:
            found = done.figures.compared(task, "accuracy").get(row[0])
            if found is None:
                assert row[place] == "–"
            else:
                assert row[place].text == tuple(filter(None, (spread(found), interval(found))))
                assert row[place].strong == (row[0] in done.figures.certain(task))
    (drawing,) = section.ranks.drawings
    (axes,) = ranks_figure(done.figures).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ranks)
    assert all(re.search(f">{re.escape(label)}</text>", drawing) for label in ranks)


def test_links_lead_to_the_tasks(done, section, tmp_path):
    page = (tmp_path / "report.html").read_text()
    for task in section.tasks:
        assert page.count(f'href="#{task.anchor}"') == 2
        assert page.count(f'id="{task.anchor}"') == 1
        assert task.chosen is not None
        assert [row[0] for row in task.chosen.rows] == list(done.figures.chosen[task.name])


def test_a_study_that_is_not_finished_says_so(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(UserError, match="to be finished, but got no results"):
        write_report([tmp_path])
