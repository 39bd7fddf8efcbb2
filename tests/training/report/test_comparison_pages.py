"""Pages of comparisons, of measured competition and of several runs."""

import json
import shutil

from agm.training import compare_methods
from agm.training.__main__ import main
from agm.training.competition_observer import COLUMNS
from agm.training.exports import interval, spread, write_csv, write_settings
from agm.training.report import write_report
from agm.training.run_folder import write_rows

from .page import Page, config_of, page_matrix


def test_a_comparison_has_its_paired_intervals(place, tmp_path, capsys):
    config, methods, fusions = config_of(place, epochs=1), ["joint", "agm(alpha=2)"], ["late", "early"]
    out = tmp_path / "compare"
    expected = compare_methods(config, methods, 2, out, fusions=fusions)
    write_csv(out / "compare.csv", expected, config.seed)
    write_settings(out / "compare.toml", config, methods, 2, fusions)
    assert main(["report", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    page = Page(out / "report.html")
    tables = [table.rows[1:] for table in page.tables if table.rows[0][-1] == "claim"]
    assert len(tables) == 4  # of each fusion the accuracies, and what else there is
    rows = [row for table in tables for row in table if len(row) > 1]
    for row, found in zip(rows, expected, strict=True):
        assert row[:3] == [found.method, spread(found), interval(found)]
        assert row[3] == (found.verdict if found.verdict in ("", "higher", "lower") else "none")
    (section,) = printed["sections"]
    values = [one["values"] for one in section["comparisons"] if one["metric"] == "accuracy"]
    assert values == [list(found.values) for found in expected if found.metric == "accuracy"]
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.source.count("over the epochs") > 4


def test_strengths_are_shown_where_they_were_measured(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    head = ("", "strength", "95 % interval")
    assert not [table for table in Page(write_report([folder])[0]).tables if table.rows[0] == list(head)]
    (folder / "strength.json").write_text('{"strength": {"audio": 0.25, "image": 0.5}}')
    page = Page(write_report([folder])[0])
    assert [row[:2] for row in page.table(*head)] == [["audio", "0.250"], ["image", "0.500"]]
    rows = [
        ["agm", epochs, name, value + epochs / 10, value, value + 1, 30, 3, 3, 1.0]
        for epochs in (0, 3)
        for name, value in (("audio", 0.1), ("image", 0.2))
    ]
    write_rows(folder / "competition.csv", COLUMNS, rows)
    page = Page(write_report([folder])[0])
    assert page.table(*head) == [["audio", "0.400", "[0.100, 1.100]"], ["image", "0.500", "[0.200, 1.200]"]]
    assert page.source.count("competition strength of") == 2


def test_a_measurement_of_competition_has_its_table_and_pictures(run, tmp_path):
    shutil.copy(run / "config.toml", tmp_path / "training.toml")
    (tmp_path / "competition.toml").touch()
    rows = [["apart", None, "audio", 0.1, 0.05, 0.2, 30, 3, 3, 1.0]]
    rows += [["joint", epochs, "audio", 0.5 + epochs, 0.4, 2.0, 30, 3, 3, 1.0] for epochs in (0, 1)]
    write_rows(tmp_path / "competition.csv", COLUMNS, rows)
    page = Page(write_report([tmp_path])[0])
    assert page.table("method", "audio") == [["apart", "0.100 [0.050, 0.200]"], ["joint", "1.500 [0.400, 2.000]"]]
    assert "trained apart" in page.text
    assert page.source.count("<svg") == 1


def test_several_runs_share_a_page(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(run), "--samples", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == "report.html"
    page = Page(tmp_path / "report.html")
    result = json.loads((run / "result.json").read_text())
    rows = page.table("run", "split", "joint, %", "audio response, %", "image response, %")
    assert [row[2] for row in rows] == [f"{100 * result['accuracy']:.1f}"] * 2
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    first = printed["sections"][0]
    assert first["figures"]["accuracy"] == result["accuracy"]
    assert first["confusions"]["joint"] == page_matrix(page)
    assert first["least_balanced"] == page.samples[:1]
