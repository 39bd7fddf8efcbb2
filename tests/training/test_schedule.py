"""Optimizers, schedules, the end and the best epoch."""

import json
from dataclasses import replace

import pytest
import torch

from agm.training import Config, UserError, load_run, train
from agm.training.methods import new_optimizer
from agm.training.observer import Observer
from agm.training.run_folder import read_table
from agm.training.schedule import best_epoch, ended_early, learning_rate

CONFIG = Config(
    dataset="basic-motions", method="joint", epochs=6, batch_size=16, width=8, lr=0.05, device="cpu", threads=1
)


def test_plateau_is_torch_s():
    losses = [3.0, 2.0, 2.5, 2.1, 2.0, 1.99985, 1.9, 1.9, 1.95, 1.91, 2.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    config = replace(CONFIG, schedule="plateau", patience=2, step_factor=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    rates = []
    for epoch, loss in enumerate(losses):
        history = [{"loss": value} for value in losses[:epoch]]
        assert learning_rate(config, epoch, history) == pytest.approx(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
        rates.append(learning_rate(config, epoch, history))
    assert len(set(rates)) > 3


KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_optimizers(tmp_path, name, kind):
    config = replace(CONFIG, optimizer=name, lr=0.003, weight_decay=0.01)
    optimizer = new_optimizer(config, [torch.zeros(2, requires_grad=True)])
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.003, 0.01)
    assert group.get("momentum") == (0.9 if name == "sgd" else None)
    result = train(config, tmp_path / "run")
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_best_epoch_and_the_end():
    history = [{"accuracy": value} for value in (0.1, 0.5, 0.5, 0.4, 0.45)]
    assert best_epoch(history) == 1
    assert [ended_early(replace(CONFIG, early_stopping=3), history[:n]) for n in range(6)] == [False] * 5 + [True]
    assert not ended_early(CONFIG, history)


class _Stops(Observer):
    """Like Ctrl-C after some epochs."""

    def __init__(self, stop):
        self.stop, self.done = stop, 0

    def epoch_finished(self, row):
        self.done += 1
        if self.done == self.stop:
            raise KeyboardInterrupt


def _with_accuracies(monkeypatch, values):
    """The validation accuracies of epochs 0, 1, ... are these; those of the test split are what they are."""
    from agm.training import training_loop

    evaluate = training_loop.evaluate

    def told(network, split, modalities):
        found = evaluate(network, split, modalities)
        frame = told.trainer
        watching = frame is not None and split is frame.watched_split
        return replace(found, accuracy=values[frame.epoch]) if watching else found

    told.trainer = None
    made = training_loop.Trainer.__init__

    def init(self, *arguments, **settings):
        made(self, *arguments, **settings)
        told.trainer = self

    monkeypatch.setattr(training_loop, "evaluate", told)
    monkeypatch.setattr(training_loop.Trainer, "__init__", init)


def test_the_best_weights_are_evaluated_also_after_an_interruption(tmp_path, monkeypatch):
    _with_accuracies(monkeypatch, [0.1, 0.3, 0.9, 0.2, 0.2, 0.1])
    config = replace(CONFIG, choose="best", early_stopping=2, epochs=6, schedule="constant")
    whole = train(config, tmp_path / "whole")
    assert len(whole.history) == 5  # the best, and two that were not better
    written = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert written["chosen_epoch"] == 3
    # The weights are those of a run that ends there.
    short = train(replace(config, choose="last", early_stopping=None, epochs=3), tmp_path / "short")
    for name, value in short.network.state_dict().items():
        assert torch.equal(whole.network.state_dict()[name], value), name
    # In one go or in two.
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "two", observer=_Stops(4))
    again = train(config, tmp_path / "two", resume=True)
    assert again.evaluation == whole.evaluation
    assert load_run(tmp_path / "two").evaluation == whole.evaluation
    assert len(read_table(tmp_path / "two" / "metrics.csv")) == 5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"schedule": "plateau"}, "schedule plateau"),
        ({"early_stopping": 3}, "early stopping"),
        ({"choose": "best"}, "choosing the best epoch"),
    ],
)
def test_they_want_a_validation_split(tmp_path, settings, reason):
    config = replace(CONFIG, dataset="av-digits", **settings)
    with pytest.raises(UserError, match=f"a validation split for {reason}, but got none"):
        train(config, tmp_path / "run")


def test_a_comparison_says_which_epochs_it_is_of(tmp_path, capsys):
    from agm.training.cli import run

    given = ["compare", "--dataset", "basic-motions", "--methods", "joint,agm", "--seeds", "1", "--epochs", "2"]
    given += ["--width", "8", "--threads", "1", "--device", "cpu", "--out"]
    assert run([*given, str(tmp_path / "best"), "--choose", "best"]) == 0
    assert "1 seed, best epoch on the validation split, test split." in (tmp_path / "best" / "compare.md").read_text()
    assert "best epoch on the validation split" in " ".join(capsys.readouterr().out.split())
    again = ["compare", "--config", str(tmp_path / "best" / "compare.toml"), "--out", str(tmp_path / "again")]
    assert run(again) == 0
    assert (tmp_path / "again" / "compare.md").read_text().splitlines()[:3] == (
        (tmp_path / "best" / "compare.md").read_text().splitlines()[:3]
    )
    for name in ("resumed", "resumed"):  # the second finds the runs finished
        assert run([*given, str(tmp_path / name), "--early-stopping", "1"]) == 0
    assert "last epoch, test split" in (tmp_path / "resumed" / "compare.md").read_text()
