"""Runs that end early or are refused, and what they leave in their folder."""

from dataclasses import replace

import pytest
import torch

from agm import data as datasets
from agm.data import Split
from agm.training import DivergedError, UserError, load_run, schedule, train, training_loop
from agm.training.run_folder import read_table

from .stopping import Stop, StopAt


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(settings, tmp_path, monkeypatch):
    rate = schedule.learning_rate
    wild = lambda config, epoch, history=(): 1e38 if epoch else rate(config, epoch)  # noqa: E731
    monkeypatch.setattr(training_loop, "learning_rate", wild)
    with pytest.raises(DivergedError, match=r"epoch 2: the loss of step \d is (nan|inf).*unharmed.*--clip-norm"):
        train(settings(), tmp_path / "run")
    contents = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert contents["epoch"] == 1
    assert all(bool(value.isfinite().all()) for value in contents["model"].values())
    assert not (tmp_path / "run/result.json").exists()
    assert len(read_table(tmp_path / "run/steps.csv")) == 8  # for looking at what happened
    assert 0 <= load_run(tmp_path / "run").evaluation.accuracy <= 1


def test_a_last_step_that_breaks_the_weights_is_not_saved(settings, tmp_path, monkeypatch):
    step = training_loop.Trainer._take_step

    def breaking(self, index):
        result = step(self, index)
        with torch.no_grad():
            next(self.method.network.parameters()).fill_(torch.nan)
        return result

    monkeypatch.setattr(training_loop.Trainer, "_take_step", breaking)
    with pytest.raises(DivergedError, match="epoch 1"):
        train(settings(batch_size=64), tmp_path / "run")
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_a_folder_with_a_run_is_refused_and_left_alone(settings, tmp_path):
    train(settings(epochs=1), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match=r"hold no run yet.*--resume .*run, or choose another folder with --out"):
        train(settings(epochs=1, seed=1), tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="got a file"):
        train(settings(), tmp_path / "file")


def test_resume_refuses_other_settings_and_other_data(settings, data, dataset, tmp_path):
    with pytest.raises(UserError, match=r"hold a run.*no config\.toml"):
        train(settings(), tmp_path / "run", resume=True)
    with pytest.raises(Stop):
        train(settings(), tmp_path / "run", observer=StopAt(epoch=1))
    with pytest.raises(UserError, match=r"alpha \(2\.0, 1\.5\), lr \(0\.1, 0\.02\)"):
        train(settings(lr=0.1, alpha=2.0), tmp_path / "run", resume=True)

    config = tmp_path / "run/config.toml"
    text = config.read_text()
    config.write_text(text.replace("lr = 0.02", "lr = 0.03"))
    with pytest.raises(UserError, match=r"its checkpoint: lr \(0\.03, 0\.02\)"):
        train(settings(lr=0.03), tmp_path / "run", resume=True)
    config.write_text(text)

    changed = data.train.inputs | {"audio": data.train.inputs["audio"] + 1}
    datasets.save(replace(data, train=Split(changed, data.train.target)), dataset)
    with pytest.raises(UserError, match="contents changed"):
        train(settings(), tmp_path / "run", resume=True)


def test_a_mistake_in_data_or_method_leaves_no_folder(settings, tmp_path):
    for wrong, message in [
        ({"dataset": str(tmp_path / "none.npz")}, "none.npz"),
        ({"dataset": "mnist"}, "known dataset"),
        ({"method": "amg"}, "joint, agm, ogm.*unimodal:NAME"),
        ({"options": {"alpha": 1}}, "`alpha` of method 'agm' among the settings"),
        ({"method": "unimodal"}, "unimodal:NAME"),
        ({"method": "agm:audio"}, "unimodal:NAME"),
        ({"method": "unimodal:text"}, "one of audio, image, but got 'text'"),
        ({"fusion": "middle"}, "one of late,"),
        ({"width": 1}, "width"),
    ]:
        with pytest.raises(UserError, match=message):
            train(settings(**wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_the_networks_cannot_take(settings, data, tmp_path):
    tokens = {"text": torch.ones(49, 5, 2, dtype=torch.int64)}, {"text": torch.ones(30, 5, 2, dtype=torch.int64)}
    sound = ({"audio": part.inputs["audio"]} for part in (data.train, data.test))
    for name, (train_inputs, test_inputs) in {"text": tokens, "one": tuple(sound)}.items():
        smaller = replace(data, train=Split(train_inputs, data.train.target), test=Split(test_inputs, data.test.target))
        datasets.save(smaller, tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match=r"token ids in 'text' to be of shape \(N, T\).*\(49, 5, 2\)"):
        train(settings(dataset=str(tmp_path / "text.npz")), tmp_path / "run")
    with pytest.raises(UserError, match="two modalities or more for method 'agm', but got audio"):
        train(settings(dataset=str(tmp_path / "one.npz")), tmp_path / "run")
    result = train(settings(dataset=str(tmp_path / "one.npz"), method="joint"), tmp_path / "run")
    assert result.evaluation.responses == {"audio": result.evaluation.accuracy}


def test_a_run_without_a_checkpoint_cannot_be_evaluated(settings, tmp_path):
    with pytest.raises(Stop):
        train(settings(), tmp_path / "run", observer=StopAt(step=1))
    with pytest.raises(UserError, match=r"no checkpoint.*--resume"):
        load_run(tmp_path / "run")
