"""What is published is what was measured: the README's figures and the tables are made from the rows alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import check, report
from bench.cases import Options
from bench.rows import RESULTS, label, read, write
from bench.thresholds import load, ratios

README = report.README


def row(**facts: Any) -> dict[str, Any]:
    times = {"seconds": 2e-3, "seconds_20": 1e-3, "seconds_80": 3e-3}
    ratios = {"ratio": 1.5, "ratio_20": 1.49, "ratio_80": 1.52}
    machine = {"device": "A", "threads": 2, "torch": "2", "commit": "c", "dirty": False, "date": "d", "cuda": None}
    return machine | times | ratios | facts


def step_row(variant: str, **facts: Any) -> dict[str, Any]:
    names = {"op": "step", "network": "n", "fusion": "late", "modalities": 2, "batch": 8, "shape": "M=2 B=8 C=3"}
    return row(suite="step", **names, dtype="float32", variant=variant, over="joint", **facts)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No results but those that a test writes."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def test_the_readme_is_what_report_writes() -> None:
    text = README.read_text(encoding="utf-8")
    assert report.with_section(text) == text
    assert report.TABLES.read_text(encoding="utf-8") == report.tables()
    assert report.COST.read_text(encoding="utf-8") == report.cost()


def test_pictures_that_are_shown_exist() -> None:
    shown = [line for line in report.cost().splitlines() if line.startswith("![")]
    assert shown
    for line in shown:
        assert (RESULTS / line.partition("](")[2].rstrip(")")).is_file()


def test_committed_rows_say_where_they_come_from() -> None:
    files = sorted(RESULTS.glob("*.jsonl"))
    assert files
    for path in files:
        for found in read(path):
            assert {"date", "commit", "dirty", "device", "torch", "op", "shape", "dtype", "variant"} <= found.keys()
            assert f"{found['suite']}-" == path.name.partition("cpu")[0].partition("cuda")[0]


def test_what_was_not_measured_is_said_to_be() -> None:
    measured = list(RESULTS.glob("*-cuda.jsonl"))
    assert ("On a GPU: not measured yet" in report.cost()) == (not measured)
    assert ("On a GPU: not measured yet" in report.summary()) == (not measured)


def test_without_results_there_are_no_figures(results: Path) -> None:
    text = report.cost()
    assert "On a CPU: not measured yet" in text
    assert "On a GPU: not measured yet" in text
    assert "|" not in text
    assert report.summary() == "On a CPU: not measured yet; `bench/cpu.sh` measures.\n"


def test_a_table_of_steps(results: Path) -> None:
    counts = {"memory_ratio": 1.75, "encoder_ratio": 2.02}
    old = step_row("exact", **counts) | {"ratio": 9.0}
    noisy = {"ratio": 3.0, "ratio_20": 2.0, "ratio_80": 4.0}
    rows = [old, step_row("joint"), step_row("sequential") | noisy, step_row("exact", **counts)]
    write(results / "step-cpu.jsonl", {}, rows)
    found = report.rows_of("step", "cpu")
    assert len(found) == 3  # the last measurement of a case is what counts
    assert report.step_times(found) == [
        ["network", "fusion", "M", "B", "published recipe", "`exact`"],
        ["n", "late", "2", "8", "too noisy (2.00 - 4.00)", "1.50 (1.49 - 1.52)"],
    ]
    assert report.step_counts(found)[1] == ["n", "late", "2", "8", "1.75, 2.02"]
    assert "| n | late | 2 | 8 |" in report.cost()
    assert "A, 2 threads, torch 2, commit c, d" in report.cost()


def test_the_readme_shows_some_steps(results: Path) -> None:
    small, other = {"network": "small"}, {"network": "other"}
    write(
        results / "step-cpu.jsonl",
        {},
        [step_row("exact") | small, step_row("compiled") | small, step_row("exact") | other],
    )
    assert report.summary().splitlines()[0::2] == [
        "| network | fusion | M | B | `exact` |",
        "| small | late | 2 | 8 | 1.50 (1.49 - 1.52) |",
        "A, 2 threads, torch 2, commit c, d. On a GPU: not measured yet.",
    ]


def test_a_table_of_ops(results: Path) -> None:
    facts = {"suite": "head", "op": "modulate", "shape": "M=2 B=64 C=10", "dtype": "float32", "over": "reference"}
    one = {"ratio": 1.0, "ratio_20": 1.0, "ratio_80": 1.0}
    write(results / "head-cpu.jsonl", {}, [row(**facts, variant="cpp"), row(**facts, variant="reference") | one])
    assert report.op_times(report.rows_of("head", "cpu"), "cpu") == [
        ["", "M, B, C", "C++ / reference", "C++", "reference"],
        ["`modulate`", "2, 64, 10", "1.50 (1.49 - 1.52)", "2 ms", "2 ms"],
    ]


def test_pictures_are_drawn_from_rows(results: Path) -> None:
    write(results / "step-cpu.jsonl", {}, [step_row("joint"), step_row("exact")])
    scaled = {"axis": "batch", "classes": 10, "bytes": 8, "copy_bandwidth": 1e9, "modalities": 2, "dtype": "float32"}
    head = [
        row(suite="scaling", op="fused_modulate", shape=f"B={batch}", batch=batch, variant="auto", **scaled)
        for batch in (1, 4)
    ]
    grown = [step_row(name, axis="modalities", encoder_ratio=2.1) for name in ("joint", "exact")]
    write(results / "scaling-cpu.jsonl", {}, [*head, *grown])
    made = report.draw()
    assert [path.name for path in made] == ["step-cpu.png", "scaling-head-cpu.png", "scaling-step-cpu.png"]
    assert all(path.stat().st_size > 5000 for path in made)


def test_every_bound_is_about_something_that_is_measured() -> None:
    options = Options(torch.device("cpu"))
    bounds = {bound for device in ("cpu", "cuda") for bound in ratios(device)}
    assert len(bounds) == len(load()["ratio"])
    for bound in bounds:
        case = check.find(bound, options)
        assert bound.suite == "head" or bound.over == case.baseline or bound.over == "sequential"
        assert str(bound).startswith(label(case.facts).split()[0 if bound.op else 1])


def test_an_unknown_bound_is_an_error() -> None:
    unknown = next(bound for bound in ratios("cpu") if bound.op)
    with pytest.raises(ValueError, match="no suite measures it"):
        check.find(type(unknown)(**{**vars(unknown), "shape": "M=2 B=3 C=4"}), Options(torch.device("cpu")))
