"""Runs that break off at any step, or are killed at any moment, and checkpoints from other hands."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agm.training import UserError, load_run, train, training_loop
from agm.training.checkpoint import load_checkpoint, save_checkpoint
from agm.training.run_folder import read_table

from .stopping import Stop, StopAt
from .test_trainer import same


def assert_same_runs(left: Path, right: Path) -> None:
    """Weights, optimizer, generators, running scores and tables, bit for bit."""
    one, other = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (left, right))
    assert same(one["model"], other["model"])
    for key, slots in one["optimizer"]["state"].items():
        assert torch.equal(slots["momentum_buffer"], other["optimizer"]["state"][key]["momentum_buffer"])
    assert torch.equal(one["random"]["cpu"], other["random"]["cpu"])
    for name in ("steps.csv", "result.json"):
        assert (left / name).read_text() == (right / name).read_text()
    rows = [read_table(folder / "metrics.csv") for folder in (left, right)]
    for row in [*rows[0], *rows[1]]:
        for name in [name for name in row if name.endswith("seconds")]:
            del row[name]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("method", "every"),
    [("agm", 1), ("agm", 3), ("inforeg", 1), ("g-blending", 1), ("mses", 1), ("aug", 1), ("amco", 1), ("opm", 1)],
)
def test_a_run_goes_on_from_any_step(settings, tmp_path, method, every):
    """12 steps, 4 an epoch, with dropout and batch norm; broken off after each checkpoint inside an epoch."""
    held_out = {"validation": 0.02, "batch_size": 13} if method in ("g-blending", "mses") else {}
    config = settings(method=method, start=1, **held_out)
    train(config, tmp_path / "whole")
    taken = 0
    for stop in (2, 3, 5, 6, 7, 10, None):
        torch.manual_seed(999)  # another process would begin with other generators
        observer = StopAt(step=None if stop is None else stop - taken + taken % 4)
        try:
            train(config, tmp_path / "parts", resume=taken > 0, checkpoint_every=every, observer=observer)
        except Stop:
            if not (tmp_path / "parts/checkpoint.pt").exists():
                (tmp_path / "parts").rename(tmp_path / f"before-{stop}")
                continue
            contents = load_checkpoint(tmp_path / "parts/checkpoint.pt")
            inside = contents["unfinished"]
            taken = contents["step"] + (0 if inside is None else len(inside["losses"]))
            assert taken == max(stop // every * every, stop // 4 * 4)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_is_killed_again_and_again(settings, tmp_path):
    config = settings(epochs=4, masked="exact")
    train(config, tmp_path / "whole")
    script, file = Path(__file__).with_name("killed.py"), tmp_path / "whole/config.toml"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, file, tmp_path / "parts"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) >= 1  # kills behind a checkpoint inside an epoch
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_inside_an_epoch_can_be_evaluated(settings, tmp_path):
    with pytest.raises(Stop):
        train(settings(), tmp_path / "run", checkpoint_every=1, observer=StopAt(step=2))
    saved = load_checkpoint(tmp_path / "run/checkpoint.pt")
    network = load_run(tmp_path / "run").network
    assert same(
        network.state_dict(), {n.removeprefix("module."): x for n, x in saved["model"].items() if "module." in n}
    )


def test_checkpoints_inside_epochs_are_not_of_a_run_that_diverged(settings, tmp_path, monkeypatch):
    step = training_loop.Trainer._take_step

    def breaking(self, index):
        loss, hit = step(self, index)
        breaking.steps += 1
        return (loss * torch.nan if breaking.steps == 3 else loss), hit

    breaking.steps = 0
    monkeypatch.setattr(training_loop.Trainer, "_take_step", breaking)
    with pytest.raises(training_loop.DivergedError, match=r"step 3 is nan.*unharmed"):
        train(settings(), tmp_path / "run", checkpoint_every=1)
    assert len(load_checkpoint(tmp_path / "run/checkpoint.pt")["unfinished"]["losses"]) == 2


def test_a_number_of_steps_that_cannot_be(settings, tmp_path):
    with pytest.raises(UserError, match="--checkpoint-every"):
        train(settings(), tmp_path / "run", checkpoint_every=0)
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoints_are_refused_or_what_they_were(settings, tmp_path):
    """One byte wrong, or an end missing, anywhere: never other numbers, never another error."""
    with pytest.raises(Stop):
        train(settings(), tmp_path / "run", checkpoint_every=1, observer=StopAt(step=2))
    path = tmp_path / "run/checkpoint.pt"
    whole, contents, chance = path.read_bytes(), load_checkpoint(path), random.Random(0)
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole)
        place = chance.randrange(len(whole))
        if trial % 3:
            damaged[place] ^= 1 << chance.randrange(8)
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except UserError:
            refused += 1
        else:  # where nothing is read: alignment, times of files
            assert same(found["model"], contents["model"])
            assert found["step"] == contents["step"]
    assert refused > 75


@pytest.mark.parametrize(
    "change",
    [
        lambda contents: contents.pop("model"),
        lambda contents: contents.pop("unfinished"),
        lambda contents: contents["model"].pop(next(key for key in contents["model"] if key.endswith(".weight"))),
        lambda contents: contents.update(config={"colour": 1}),
        lambda contents: contents.update(config=None),
        lambda contents: contents.update(optimizer={"state": {}}),
        lambda contents: contents.update(random={"cpu": torch.zeros(3)}),
        lambda contents: contents["unfinished"].pop("losses"),
    ],
    ids=["no model", "no key", "a weight less", "other settings", "no settings", "optimizer", "generator", "steps"],
)
def test_a_foreign_checkpoint_is_refused(settings, tmp_path, change):
    with pytest.raises(Stop):
        train(settings(), tmp_path / "run", checkpoint_every=1, observer=StopAt(step=2))
    contents = load_checkpoint(tmp_path / "run/checkpoint.pt")
    change(contents)
    save_checkpoint(tmp_path / "run/checkpoint.pt", contents)
    with pytest.raises(UserError, match=r"checkpoint\.pt.*does not fit"):
        train(settings(), tmp_path / "run", resume=True)
