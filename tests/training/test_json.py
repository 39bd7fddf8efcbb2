"""`--json`: one value on the standard output, and everything else beside it."""

import csv
import json

import pytest

from agm.training.__main__ import main
from agm.training.commands.as_json import write_json


@pytest.fixture
def options(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["--dataset", str(dataset), "--width", "8", "--epochs", "1", "--threads", "1", "--device", "cpu"]


def found(capsys, *arguments):
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_a_run(options, tmp_path, capsys):
    values, told = found(capsys, "train", *options, "--out", "run")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert values["figures"]["accuracy"] == written["accuracy"]
    assert values["figures"]["macro_f1"] == written["macro_f1"]
    assert (values["folder"], values["epochs"], values["settings"]["width"]) == ("run", 1, 8)
    assert "49 samples to train on, 30 to test on" in told
    assert "agm, late fusion" in told
    again, _ = found(capsys, "evaluate", "run")
    assert again["figures"] == values["figures"]
    total = again["figures"]["accuracy"]
    assert sum(again["contributions"].values()) == pytest.approx(total - 14 / 30, abs=0.2)


def test_a_comparison_and_a_choice(options, tmp_path, capsys):
    rows, _ = found(capsys, "compare", *options, "--methods", "joint,agm", "--seeds", "2", "--out", "c")
    with open(tmp_path / "c" / "compare.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["metric"], row["method"]) for row in rows] == [(row["metric"], row["method"]) for row in table]
    for row, line in zip(rows, table, strict=True):
        assert row["mean"] == float(line["mean"])
        assert row["values"] == [float(line["seed_0"]), float(line["seed_1"])]
    arguments = ["--setting", "alpha=0.5,1", "--seeds", "1", "--validation", "0.3", "--out", "t"]
    chosen, _ = found(capsys, "tune", *options, *arguments)
    assert chosen["chosen"] in {trial["method"] for trial in chosen["trials"]} == {"agm(alpha=0.5)", "agm(alpha=1)"}


def test_what_serves(capsys):
    values, told = found(capsys, "info")
    assert {"versions", "devices", "native", "backends"} == set(values)
    assert {entry["device"] for entry in values["backends"]} == {"cpu", "cuda"}
    assert "backends of the operations" in told


def test_what_has_no_figure_is_null(capsys):
    write_json({"a": float("nan"), "b": (1, float("inf")), "c": None})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, None], "c": None}
