import math
import os
import tomllib
from dataclasses import fields

import pytest
import torch

from agm.training.config import Config, differences, kind_of, read_config, settings, write_config
from agm.training.errors import UserError

OTHER = {
    "dataset": "C:\\data\\ä.npz",
    "fusion": "early",
    "modalities": "audio,image",
    "encoders": "resnet18",
    "init": "xavier",
    "optimizer": "adamw",
    "patience": 3,
    "early_stopping": 6,
    "choose": "best",
    "class_weights": "balanced",
    "error": "absolute",
    "scale": "standard",
    "width": 17,
    "validation": 0.25,
    "method": "unimodal:audio",
    "alpha": 0.1 + 0.2,
    "max_gap": math.inf,
    "masked": "exact",
    "start": 3,
    "stop": 9,
    "epochs": 11,
    "batch_size": 5,
    "lr": 1e-7 / 3,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "step",
    "step_epochs": 4,
    "step_factor": 1 / 3,
    "clip_norm": 5.0,
    "clip_above": 1.0,
    "seed": 2**32 - 1,
    "device": "cuda:1",
    "threads": 3,
    "options": {"alpha": 0.3, "noise": True, "initial": {"audio": 1.3, "image": 0.7}, "text": "x"},
}


def test_every_setting_survives_the_file(tmp_path):
    assert set(OTHER) == {spec.name for spec in fields(Config)}
    for config in (Config(), Config(**OTHER)):
        path = tmp_path / f"{config.width}.toml"
        write_config(path, config, {"torch": "x"})
        assert read_config(path) == config
    assert not any(getattr(Config(), name) == value for name, value in OTHER.items())


def test_the_file_says_what_a_setting_does_and_where_it_ran(tmp_path):
    write_config(tmp_path / "c.toml", Config(), {"torch": "2.x"})
    text = (tmp_path / "c.toml").read_text()
    assert all(spec.metadata["help"] in text for spec in settings())
    assert tomllib.loads(text)["environment"] == {"torch": "2.x"}


def test_a_file_is_never_written_over(tmp_path):
    write_config(tmp_path / "c.toml", Config(), {})
    with pytest.raises(FileExistsError):
        write_config(tmp_path / "c.toml", Config(seed=1), {})


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "c.toml").write_text("lr = 1\nepochs = 7\nstop = 5\n")
    config = read_config(tmp_path / "c.toml", {"epochs": 9, "stop": None})
    assert (config.lr, config.epochs, config.stop) == (1.0, 9, None)
    assert isinstance(config.lr, float)
    assert config.batch_size == Config().batch_size


def test_an_unknown_key_names_itself_the_file_and_what_was_meant(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("batch-sise = 3\n")
    with pytest.raises(UserError, match=r"mine\.toml.*`batch-sise`.*mean `batch_size`.*Known: dataset, modalities"):
        read_config(path)
    path.write_text("[compare]\nseeds = 3\n[environment]\ntorch = 'x'\n")
    assert read_config(path) == Config()
    path.write_text("[agm]\nalpha = 1.0\n")
    with pytest.raises(UserError, match="`agm`"):
        read_config(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('lr = "fast"', "`lr` to be a number, but got 'fast'"),
        ("epochs = 1.5", "`epochs` to be an integer, but got 1.5"),
        ("seed = true", "`seed` to be an integer, but got True"),
        ("momentum = true", "`momentum` to be a number, but got True"),
        ('stop = "none"', "`stop` to be an integer"),
        ("dataset = 3", "`dataset` to be a string"),
        ("lr = nan", "`lr` to be a positive number"),
        ("max_gap = nan", "`max_gap`"),
    ],
)
def test_a_wrong_value_in_a_file_names_key_and_file(tmp_path, line, expected):
    (tmp_path / "mine.toml").write_text(line)
    with pytest.raises(UserError) as error:
        # An override of the same setting must not hide what is wrong in the file.
        read_config(tmp_path / "mine.toml", {"lr": 0.1})
    assert "mine.toml" in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -0.1),
        ("alpha", math.inf),
        ("max_gap", 0.0),
        ("masked", "both"),
        ("start", -1),
        ("stop", 0),
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("schedule", "linear"),
        ("step_factor", 0.0),
        ("clip_norm", 0.0),
        ("clip_above", -1.0),
        ("validation", 1.0),
        ("seed", -1),
        ("threads", 0),
        ("dataset", ""),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"`{name}`"):
        Config(**{name: value})


def test_not_a_file_and_not_toml(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml.*No such file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("lr = = 3")
    with pytest.raises(UserError, match=r"broken\.toml.*TOML"):
        read_config(tmp_path / "broken.toml")


def test_resolving_makes_device_threads_and_paths_definite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("av-digits")  # a known name wins over a folder of that name
    os.mkdir("mine")
    assert Config().resolved().dataset == "av-digits"
    resolved = Config(dataset="mine").resolved()
    assert resolved.dataset == str(tmp_path / "mine")
    assert resolved.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolved.threads == torch.get_num_threads() == 1
    assert resolved.resolved() == resolved
    with pytest.raises(UserError, match=r"`device`.*'gpu'.*--device auto"):
        Config(device="gpu").resolved()


def test_differences_name_the_settings_and_both_values():
    assert differences(Config(), Config()) == []
    assert differences(Config(lr=0.1), Config(lr=0.2, stop=3)) == ["stop (None, 3)", "lr (0.1, 0.2)"]


def test_every_setting_has_a_type_that_a_file_can_hold():
    for name in (spec.name for spec in settings()):
        kind, optional = kind_of(name)
        assert kind in (str, int, float)
        assert optional == (getattr(Config(), name) is None)


def test_options_are_plain_values_and_merge_with_those_of_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("[options]\nalpha = 0.3\nnoise = false\n")
    assert read_config(tmp_path / "c.toml", {"options": {"alpha": 0.5}}).options == {"alpha": 0.5, "noise": False}
    (tmp_path / "c.toml").write_text("[options]\ndates = [1979-05-27]\n")
    with pytest.raises(UserError, match=r"c\.toml.*option `dates` to be a number"):
        read_config(tmp_path / "c.toml")
    with pytest.raises(UserError, match="to be a table"):
        Config(options=3)
