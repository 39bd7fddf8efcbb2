import csv

import pytest
import torch
from rich.console import Console

from agm.training import UserError, train, training_loop
from agm.training.console import trials_table
from agm.training.run_folder import RunFolder
from agm.training.samples import hold_out
from agm.training.tune import Trial, best, parse_setting, tune_method, write_trials
from agm.training.variants import parse_variant


def test_the_highest_accuracy_wins_and_then_the_lowest_loss():
    def trial(label, accuracies, losses):
        return Trial(parse_variant(label), accuracies, losses)

    trials = [
        trial("agm(alpha=1)", (0.5, 0.7), (1.0, 1.0)),
        trial("agm(alpha=2)", (0.6, 0.6), (0.9, 0.9)),
        trial("agm(alpha=3)", (0.9, 0.2), (0.1, 0.1)),
    ]
    assert best(trials).variant.label == "agm(alpha=2)"


def test_settings_that_diverge_are_not_chosen(settings, tmp_path, capsys):
    config = settings(method="agm", validation=0.3, epochs=1)
    bad, good = trials = tune_method(config, {"lr": [1e30, 0.01]}, 2, tmp_path / "tune")
    assert (bad.diverged, good.diverged) == (2, 0)
    assert best(trials) is good
    write_trials(tmp_path / "tune.csv", trials, 0)
    with open(tmp_path / "tune.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["chosen"] for row in written] == ["", "yes"]
    assert [row["seed_1"] == "" for row in written] == [True, False]  # no figure, not "nan"
    Console(width=120).print(trials_table(trials))
    assert "2 diverged" in capsys.readouterr().out
    with pytest.raises(UserError, match="of which no run diverges"):
        best([bad])


def test_settings():
    assert parse_setting("max-gap=1,inf") == ("max_gap", [1, float("inf")])
    assert parse_setting("masked=exact,shared") == ("masked", ["exact", "shared"])


def test_choosing_never_looks_at_the_test_split(settings, data, tmp_path, monkeypatch):
    evaluate, seen = training_loop.evaluate, []

    def watched(network, split, modalities):
        seen.append(len(split))
        return evaluate(network, split, modalities)

    monkeypatch.setattr(training_loop, "evaluate", watched)
    config, grid = settings(method="agm", validation=0.3, epochs=2), {"alpha": [0.0, 2.0], "smoothing": [0.5]}
    finished = []
    trials = tune_method(config, grid, 2, tmp_path / "tune", finished=finished.append)
    assert set(seen) == {15}  # the test split has 30 samples
    assert [trial.variant.label for trial in trials] == [f"agm(alpha={alpha},smoothing=0.5)" for alpha in (0.0, 2.0)]
    for trial in trials:
        for seed, accuracy in enumerate(trial.accuracies):
            run = RunFolder(tmp_path / "tune" / trainer_name(trial.variant.label, seed))
            assert run.read_result()["split"] == "validation"
            assert run.read_result()["accuracy"] == accuracy
    network = finished[-1].network.eval()
    split = hold_out(data, finished[-1].config).validation
    with torch.no_grad():
        hits = (network(**split.inputs).argmax(1) == split.target).float().mean().item()
    assert trials[-1].accuracies[-1] == pytest.approx(hits)

    write_trials(tmp_path / "tune.csv", trials, 0)
    with open(tmp_path / "tune.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows if row["chosen"]] == [best(trials).variant.label]
    assert float(rows[1]["seed_1"]) == trials[1].accuracies[1]
    steps = len(finished)
    assert tune_method(config, grid, 2, tmp_path / "tune", finished=finished.append) == trials
    assert len(finished) == 2 * steps


def trainer_name(label: str, seed: int) -> str:
    return "-".join(part for part in label.replace(")", "").replace("(", ",").split(",")) + f"-seed{seed}"


def test_what_cannot_be_tuned(settings, tmp_path):
    with pytest.raises(UserError, match="validation split for choosing settings"):
        tune_method(settings(), {"alpha": [1.0]}, 1, tmp_path / "tune")
    with pytest.raises(UserError, match="among"):
        tune_method(settings(method="joint", validation=0.3), {"alpha": [1.0]}, 1, tmp_path / "tune")
    with pytest.raises(UserError, match="--seeds"):
        tune_method(settings(validation=0.3), {"alpha": [1.0]}, 0, tmp_path / "tune")
    with pytest.raises(UserError, match="validation"):
        train(settings(), tmp_path / "run", final="validation")
    assert not list(tmp_path.glob("tune/*"))
