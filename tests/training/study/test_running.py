import csv
import json
import math
import re
import shutil
import statistics
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from scipy import stats

import agm
from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training import UserError, train
from agm.training.strengths import concepts_of, strength_of
from agm.training.study import measured as measuring
from agm.training.study import read_study, requests, run_study, running
from agm.training.study.engines import Engine, engine
from agm.training.study.figures import holm
from agm.training.study.pictures import draw_study
from agm.training.study.requests import concept_seed
from agm.training.study.rows import Rows
from agm.training.study.tables import write_tables


def figures_of(rows):
    """What must not depend on where and when a run was done."""
    return {
        key: {name: value for name, value in row["figures"].items() if not name.endswith("_seconds")}
        for key, row in rows.items()
        if row["kind"] != "cost"
    }


def test_a_study_run_by_run(done, tmp_path):
    """Every figure again, by `train` alone."""
    asked, found = done.study, done.figures
    # Two concepts a task and seed; two trials and two seeds of five methods; three methods timed twice.
    assert [number for _, number, _ in done.told] == list(range(1, 35))
    assert {total for *_, total in done.told} == {8 + 10 + 10 + 6}
    clean = asked.tasks[0]
    accuracies = [
        train(variant.config(replace(clean.config, seed=50)), tmp_path / f"t{number}", final="validation").evaluation
        for number, variant in enumerate(asked.entries[0].variants)
    ]
    best = max(range(2), key=lambda number: (accuracies[number].accuracy, -accuracies[number].loss))
    assert found.chosen["clean"]["joint"] is asked.entries[0].variants[best]
    result = train(
        found.chosen["clean"]["agm, exact"].config(replace(clean.config, seed=1)), tmp_path / "again", final="test"
    )
    own = found.runs("clean", "agm, exact")[1]
    assert own["accuracy"] == result.evaluation.accuracy
    assert own["macro_f1"] == result.evaluation.further["macro_f1"]
    data = datasets.load(clean.config.dataset)
    report = agm.contributions(result.network, data.test.batches(7), result.modalities)
    assert own["contribution_table"] == pytest.approx(report.contributions["table"])
    values = report.contributions.values()
    assert own["shapley_gap"] == pytest.approx(max(values) - min(values))
    assert concept_seed(asked, 1) == 52
    networks = {
        name: train(replace(clean.config, method=f"unimodal:{name}", seed=52), tmp_path / f"concept-{name}").network
        for name in data.modalities
    }
    concepts = concepts_of(networks, data.validation, data.test)
    strengths = strength_of(result.network, data.validation, data.test, concepts, resamples=2)
    assert own["strength_audio"] == pytest.approx(strengths["audio"].value)
    assert own["strength_table"] == pytest.approx(strengths["table"].value)

    compared = found.compared("clean", "accuracy")
    pairs = [
        a["accuracy"] - b["accuracy"]
        for a, b in zip(found.runs("clean", "ogm"), found.runs("clean", "joint"), strict=True)
    ]
    assert compared["ogm"].difference[0] == pytest.approx(statistics.fmean(pairs))
    assert "ogm" not in found.compared("noisy", "accuracy")
    assert list(found.ranking().ranks) in (["joint", "agm, exact"], ["agm, exact", "joint"])
    assert found.epochs("clean", "ogm") == 1
    assert found.costs("clean")["joint"] == (1.0, 1.0, 1.0)
    assert set(found.costs("clean")) == {"joint", "agm, exact", "ogm"}
    assert found.costs("noisy") == {}
    alone = [
        train(replace(clean.config, method="unimodal:audio", seed=seed), tmp_path / f"alone-{seed}").evaluation.accuracy
        for seed in (51, 52)
    ]
    assert found.alone("clean")["audio"] == alone


def test_tables_and_pictures(done, tmp_path):
    found = done.figures
    write_tables(tmp_path, found, "agm compare tiny.toml")
    text = (tmp_path / "results.md").read_text()
    assert "2 seeds" in text
    assert f"Networks of one modality, not tuned: audio {50 * sum(found.alone('clean')['audio']):.1f} ± " in text
    assert len({line.count("|") for line in text.split("\n\n")[0].splitlines()}) == 1
    with open(tmp_path / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["task"], row["method"]) == ("clean", "ogm")]
    assert {row["metric"] for row in rows} >= {"accuracy", "macro_f1", "shapley_gap", "strength_audio"}
    accuracy = next(row for row in rows if row["metric"] == "accuracy")
    assert float(accuracy["seed_1"]) == found.runs("clean", "ogm")[1]["accuracy"]
    for path in draw_study(tmp_path, found):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_methods_against_each_other(done, tmp_path):
    found = done.figures
    gaps = {
        task: [
            one["accuracy"] - other["accuracy"]
            for one, other in zip(found.runs(task, "agm, exact"), found.runs(task, "joint"), strict=True)
        ]
        for task in ("clean", "noisy")
    }
    own = found.differences("agm, exact", "joint")
    assert own["clean"][0] == pytest.approx(statistics.fmean(gaps["clean"]))
    both = [statistics.fmean(seed) for seed in zip(*gaps.values(), strict=True)]
    for task, values in {**gaps, "": both}.items():
        mean, reach = statistics.fmean(values), stats.t.ppf(0.975, 1) * stats.sem(values)
        assert own[task] == pytest.approx((mean, mean - reach, mean + reach))
    assert own["clean"] == pytest.approx(found.compared("clean", "accuracy")["agm, exact"].difference)
    assert set(found.differences("ogm", "agm, exact")) == {"clean", ""}  # ogm is left out of the other task
    write_tables(tmp_path, found, "agm compare tiny.toml")
    mean, low, high = (100 * value for value in own[""])
    row = next(line for line in (tmp_path / "results.md").read_text().splitlines() if "agm, exact – joint" in line)
    assert row.endswith(f"| {mean:+.1f} [{low:+.1f}, {high:+.1f}] |")


def test_the_same_bits_after_an_interruption(done, tmp_path):
    asked, whole = done.study, figures_of(Rows(done.path / "rows.jsonl"))

    class Enough(Exception):
        pass

    def stop(row, number, total):
        if number == 11:
            raise Enough

    with pytest.raises(Enough):
        run_study(asked, tmp_path / "there", finished=stop)
    path = tmp_path / "there" / "rows.jsonl"
    path.write_bytes(path.read_bytes() + b'{"key": "cut')  # as a crash leaves it
    told = []
    run_study(asked, tmp_path / "there", finished=lambda row, number, total: told.append(number))
    assert told == list(range(12, 35))
    assert figures_of(Rows(path)) == whole
    told.clear()
    run_study(asked, tmp_path / "there", finished=lambda row, number, total: told.append(number))
    assert told == []


def test_workers_of_a_scheduler(done, tmp_path):
    """Two workers of two threads each on loopback: what one process computes at the same time stays apart."""
    distributed = pytest.importorskip("distributed")
    asked = replace(done.study, cost_tasks=()).only(["clean"])
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, processes=True, silence_logs=50
    ) as cluster:
        found = run_study(asked, tmp_path / "there", scheduler=cluster.scheduler_address)
    here, there = (figures_of(Rows(path / "rows.jsonl")) for path in (done.path, tmp_path / "there"))
    assert len(there) == 4 + 6 + 6
    for key, figures in there.items():  # another thread may round the last digit of a loss otherwise
        assert figures == pytest.approx(here[key], rel=1e-6)
    for run, own in zip(done.figures.runs("clean", "joint"), found.runs("clean", "joint"), strict=True):
        times = {name: value for name, value in own.items() if name.endswith("_seconds")}
        assert own == pytest.approx({**run, **times}, rel=1e-6)
    with pytest.raises(UserError, match=r"Expected a Dask scheduler at 'tcp://127\.0\.0\.1:1'"):
        run_study(asked, tmp_path / "nowhere", scheduler="tcp://127.0.0.1:1")


@pytest.mark.parametrize("address", ["foo", "", "tcp://", "bar://here:8786"])
def test_what_is_no_address_makes_no_client(address):
    """A client that was never connected takes 20 seconds to close."""
    distributed = pytest.importorskip("distributed")
    known = set(distributed.Client._instances)
    with pytest.raises(UserError, match=re.escape(f"Expected a Dask scheduler at {address!r}")), engine(1, address):
        pass
    assert set(distributed.Client._instances) == known


def test_a_run_that_diverges_is_told_and_the_others_go_on(study, tmp_path):
    asked = study(**{"alpha = [0.1, 0.3]": "lr = [1e30, 1e31]"})
    asked = replace(asked, strength=False).only(["clean:ogm"])
    found = run_study(asked, tmp_path / "out")
    assert found.runs("clean", "ogm") == [None, None]
    assert found.epochs("clean", "ogm") is None
    assert found.compared("clean", "accuracy")["ogm"].verdict == "diverged"
    assert "ogm" not in found.costs("clean")
    assert all(run is not None for run in found.runs("clean", "joint"))
    rows = Rows(tmp_path / "out" / "rows.jsonl").values()
    assert all("diverged in epoch 1" in row["diverged"] for row in rows if row["method"] == "ogm")
    write_tables(tmp_path / "out", found, "agm compare tiny.toml")
    assert "| ogm | diverged |" in (tmp_path / "out" / "results.md").read_text()
    draw_study(tmp_path / "out", found)


def test_methods_that_a_task_cannot_have_are_told_before_the_first_run(study, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "train", None)
    asked = study(**{"alpha = [0.1, 0.3]": "alpha = [-1.0, 0.3]", 'fusion = "early"': 'fusion = "erly"'})
    with pytest.raises(UserError) as caught:
        run_study(asked, tmp_path / "out")
    message = str(caught.value)
    assert "noisy, joint(lr=0.02): Expected setting `fusion`" in message
    assert "clean, ogm(alpha=-1.0): Expected" in message
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_data_without_a_validation_split(study, tmp_path):
    with pytest.raises(UserError, match="data of task 'noisy' to have a validation split"):
        run_study(study(**{"validation = 0.3\n": ""}), tmp_path / "out")


def test_rows_that_do_not_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"key": "a", "kind": "test", "task": "t", "method": "m", "variant": "v", "seed": 0, "figures": None}
    good = [row, {**row, "figures": {"accuracy": 0.5, "loss": math.nan}, "epochs": 3}]
    good += [{**row, "kind": "cost", "round": 1, "figures": {"train_seconds": 1.5, "step_seconds": None}}]
    path.write_text("".join(json.dumps({**one, "key": str(number)}) + "\n" for number, one in enumerate(good)))
    assert list(Rows(path)) == ["0", "1", "2"]
    wrong = [{name: value for name, value in row.items() if name != left_out} for left_out in row]
    wrong += [{**row, "task": 3}, {**row, "method": ["m"]}, {**row, "seed": "0"}, {**row, "epochs": "3"}, [], 5]
    wrong += [{**row, "figures": figures} for figures in ({}, [], 5, "none", {"accuracy": None}, {"accuracy": "1"})]
    wrong += [{**row, "kind": "cost", "figures": {"accuracy": 0.5}}, {**row, "kind": "concept"}]
    for one in wrong:
        path.write_text(json.dumps(row) + "\n" + json.dumps(one) + "\n")
        with pytest.raises(UserError, match="Expected line 2 of"):
            Rows(path)


def test_torch_is_as_before(study, tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run_study(replace(study(), cost_tasks=(), strength=False).only(["clean:ogm"]), tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_certain_differences(done):
    found, p = done.figures, {}
    for label in ("agm, exact", "ogm"):
        pairs = [
            a["accuracy"] - b["accuracy"]
            for a, b in zip(found.runs("clean", label), found.runs("clean", "joint"), strict=True)
        ]
        p[label] = stats.ttest_1samp(pairs, 0).pvalue
    assert found.certain("clean") == {label for label, adjusted in holm(p).items() if adjusted < 0.05}


def test_rows_of_other_settings_are_left_alone(study, done, tmp_path):
    """One folder, four studies: as in the beginning, longer, without the strength, and as in the beginning again."""
    shutil.copytree(done.path, tmp_path / "out")
    told = []

    def figures(**replaced):
        asked = replace(study(**replaced), cost_tasks=()).only(["clean:ogm"])
        return run_study(asked, tmp_path / "out", finished=lambda row, number, total: told.append(row["kind"]))

    longer = figures(**{"epochs = 1": "epochs = 2"})
    assert sorted(told) == 4 * ["concept"] + 4 * ["test"] + 4 * ["trial"]
    assert [len(values) for values in longer.alone("clean").values()] == [2, 2]
    told.clear()
    bare = figures(**{"strength = true": "strength = false"})
    assert told == 4 * ["test"]  # those with a strength were others
    assert bare.alone("clean") == {}
    assert bare.compared("clean", "strength_audio") == {}
    told.clear()
    again = figures()
    assert told == []
    assert again.alone("clean") == done.figures.alone("clean")
    assert again.runs("clean", "ogm") == done.figures.runs("clean", "ogm")
    assert "strength_audio" in again.runs("clean", "ogm")[0]


def tiny(tmp_path, target, present=None, strength=False):
    """A study of joint training and AGM on 90 samples with this target."""
    random = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(90, 3, generator=random) for name in ("audio", "table")}
    whole = Split(inputs, target, present)
    parts = [whole.take(slice(begin, begin + 30)) for begin in (0, 30, 60)]
    names = ("a", "b") if target.dim() == 1 else tuple("abc"[: target.shape[1]])
    datasets.save(MultimodalData("tiny", parts[0], parts[1], parts[2], names), tmp_path / "tiny.npz")
    (tmp_path / "s.toml").write_text(
        f"""
        study = {{seeds = 2, trials = 1, strength = {str(strength).lower()}}}
        settings = {{epochs = 1, width = 4}}
        tasks.t.dataset = "{tmp_path}/tiny.npz"
        [methods.joint]
        [methods.agm]
        """
    )
    return read_study(tmp_path / "s.toml")


@pytest.mark.parametrize(("task", "figure"), [("numbers", "correlation"), ("labels", "micro_f1")])
def test_tasks_without_classes(tmp_path, task, figure):
    """Which have no Shapley values of the accuracy, and all else."""
    target = torch.randn(90, 2, generator=torch.Generator().manual_seed(1))
    found = run_study(tiny(tmp_path, target > 0 if task == "labels" else target, strength=True), tmp_path / "out")
    for run in found.runs("t", "agm"):
        assert {"accuracy", figure, "response_audio", "strength_audio", "strength_table"} <= set(run)
        assert "shapley_gap" not in run
    write_tables(tmp_path, found, "agm compare s.toml")
    draw_study(tmp_path, found)


def test_samples_that_lack_modalities(tmp_path, monkeypatch):
    target = torch.arange(90) % 2
    present = torch.ones(90, 2, dtype=torch.bool)
    present[::3, 0] = False
    found = run_study(tiny(tmp_path, target, present), tmp_path / "out")
    data = datasets.load(tmp_path / "tiny.npz")
    assert data.test.present is not None
    again = train(found.chosen["t"]["agm"].config(replace(found.study.tasks[0].config, seed=1)), tmp_path / "again")
    report = agm.contributions(again.network, data.test.batches(9), data.modalities, present=data.test.present)
    assert found.runs("t", "agm")[1]["contribution_audio"] == pytest.approx(report.contributions["audio"])

    monkeypatch.setattr(measuring, "train", None)
    with pytest.raises(UserError, match=r"t, unimodal:audio, which `strength` needs: Expected data whose samples"):
        run_study(tiny(tmp_path, target, present, strength=True), tmp_path / "more")


def test_a_study_of_which_every_run_diverges(study, tmp_path):
    asked = study(
        **{"[0.02, 0.1]": "[1e30, 1e31]", "alpha = [0.1, 0.3]": "lr = [1e30, 1e31]", "epochs = 1": "epochs = 2"}
    )
    found = run_study(replace(asked, strength=False).only(["clean:ogm"]), tmp_path / "out")
    assert found.certain("clean") == set()
    assert {c.verdict for c in found.comparisons("clean")} == {"diverged"}
    write_tables(tmp_path / "out", found, "agm compare tiny.toml")
    assert "| ogm | diverged |" in (tmp_path / "out" / "results.md").read_text()
    draw_study(tmp_path / "out", found)


def test_concepts_that_do_not_load(study, done, tmp_path):
    shutil.copytree(done.path, tmp_path / "out")
    asked = replace(study(**{"alpha = [0.1, 0.3]": "alpha = [0.2, 0.4]"}), cost_tasks=()).only(["clean:ogm"])
    for file in (tmp_path / "out" / "concepts").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"concepts/.*\.pt' to be outputs of a network of one modality"):
        run_study(asked, tmp_path / "out")
    for file in (tmp_path / "out" / "concepts").iterdir():
        file.unlink()
    assert "strength_audio" in run_study(asked, tmp_path / "out").runs("clean", "ogm")[0]


def test_a_process_that_is_killed_between_two_runs(study, tmp_path, monkeypatch):
    """Then the pool takes no more of them."""

    class Broken(Executor):
        def submit(self, fn, /, *args, **kwargs) -> Future:
            raise BrokenProcessPool

    @contextmanager
    def broken(*_):
        yield Engine(Broken(), 2)

    monkeypatch.setattr(running, "engine", broken)
    with pytest.raises(UserError, match="one was killed"):
        run_study(study(), tmp_path / "out", jobs=2)
    with pytest.raises(UserError, match="--jobs to be an integer >= 1, but got 0"):
        run_study(study(), tmp_path / "out", jobs=0)


def test_what_a_run_is_known_by_is_computed_once(study, tmp_path, monkeypatch):
    """Not for every run that has not been done yet whenever one ends: a study has thousands."""
    counts = {"digests": 0, "runs": 0}
    digest = requests._digest

    def counting(facts):
        counts["digests"] += 1
        return digest(facts)

    monkeypatch.setattr(requests, "_digest", counting)

    def finished(row, number, total):
        counts["runs"] += 1

    run_study(replace(study(), cost_tasks=(), strength=False), tmp_path / "out", finished=finished)
    assert counts["runs"] == 20
    # Once to run it, and again where the best trials are chosen and where the figures are gathered.
    assert counts["digests"] <= 4 * counts["runs"]
