"""The page of a study."""

import re

import pytest

from agm.training import UserError
from agm.training.exports import interval, spread
from agm.training.report import write_report
from agm.training.study.pictures import ranks_figure
from agm.training.study.tables import write_tables


@pytest.fixture(scope="module")
def written(done, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    write_tables(folder, done.figures, "agm compare tiny.toml")
    page, documents = write_report([folder])
    return page.read_text(), documents[0]


@pytest.fixture
def reported(written):
    return written[1]


def test_a_report_has_the_comparisons_of_every_task(done, reported):
    assert list(reported.comparisons) == list(done.figures.tasks)
    for task, found in reported.comparisons.items():
        expected = done.figures.comparisons(task)
        assert [repr(one) for one in found] == [repr(one) for one in expected]  # of which some are NaN
        shown = [row[:3] for part in reported.tasks if part.name == task for row in part.table.rows if len(row) > 1]
        assert [(m.text[0], s, d.text[0]) for m, s, d in shown] == [
            (one.method, spread(one), interval(one)) for one in expected
        ]


def test_a_report_ranks_the_methods_as_the_study_does(done, reported):
    ranks = done.figures.ranking().ranks
    rows = reported.overview.rows
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
    (drawing,) = reported.ranks.drawings
    (axes,) = ranks_figure(done.figures).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ranks)
    assert all(re.search(f">{re.escape(label)}</text>", drawing) for label in ranks)


def test_links_of_a_report_lead_to_the_tasks(done, written):
    page, reported = written
    for task in reported.tasks:
        assert page.count(f'href="#{task.anchor}"') == 2
        assert page.count(f'id="{task.anchor}"') == 1
        assert task.chosen is not None
        assert [row[0] for row in task.chosen.rows] == list(done.figures.chosen[task.name])


def test_a_report_of_a_study_that_is_not_finished(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(UserError, match="to be finished, but got no results"):
        write_report([tmp_path])
