"""Each settings file of recipes/ trains, from the command line, on data of the right kinds of shapes."""

from pathlib import Path

import numpy as np
import pytest

from agm.training import read_config, training_loop
from agm.training.cli import run
from agm.training.commands import one_run
from agm.training.run_folder import RunFolder, read_table

RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))}

# Channels, frames and features as the sets have them, sides and lengths short; and the number of classes.
SOUND_AND_VIDEO = {"audio": (1, 33, 32), "visual": (1, 3, 32, 32)}
SHAPES = {
    "av-mnist": ({"audio": (1, 33, 33), "image": (1, 28, 28)}, 10),
    "crema-d": (SOUND_AND_VIDEO, 6),
    "ur-funny": ({"vision": (6, 371), "audio": (6, 81), "text": (6, 300)}, 2),
    "mosei": ({"text": (6, 300), "audio": (9, 74), "vision": (9, 35)}, 2),
    "kinetics-sounds": (SOUND_AND_VIDEO | {"visual": (3, 3, 32, 32)}, 31),
    "vggsound": (SOUND_AND_VIDEO | {"visual": (3, 3, 32, 32)}, 309),
    "balancedav": (SOUND_AND_VIDEO | {"visual": (3, 3, 32, 32)}, 30),
    "ave": (SOUND_AND_VIDEO | {"visual": (3, 3, 32, 32)}, 28),
}


def written(folder, name):
    shapes, classes = SHAPES[name]
    rng = np.random.default_rng(0)
    parts = np.array(["train"] * 8 + ["validation"] * 4 + ["test"] * 4)
    arrays = {key: rng.normal(size=(len(parts), *shape)).astype(np.float32) for key, shape in shapes.items()}
    path = folder / f"{name}.npz"
    names = np.array([f"class {number}" for number in range(classes)])
    np.savez(path, **arrays, target=np.arange(len(parts)) % classes, split=parts, class_names=names)
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains(name, tmp_path, capsys, monkeypatch):
    # Pictures and checkpoints have tests of their own, and take most of the time.
    monkeypatch.setattr(one_run, "draw", lambda result: None)
    monkeypatch.setattr(training_loop, "save_checkpoint", lambda path, contents: None)
    config = read_config(RECIPES[name])
    data = written(tmp_path, Path(config.dataset).stem)
    given = ["--epochs", "1", "--batch-size", "4", "--threads", "1", "--device", "cpu"]
    if config.encoders.startswith("transformer"):
        given += ["--width", "8"]
    out = tmp_path / "run"
    status = run(["train", "--config", str(RECIPES[name]), "--dataset", str(data), "--out", str(out), *given])
    assert status == 0, capsys.readouterr().err
    row = read_table(RunFolder(out).metrics)[-1]
    assert np.isfinite(row["train_loss"])
    recorded = read_config(RunFolder(out).config)
    for name in ("method", "encoders", "optimizer", "lr", "options"):
        assert getattr(recorded, name) == getattr(config, name)


def test_what_the_authors_of_agm_published():
    found = {name: read_config(path) for name, path in RECIPES.items()}
    published = {"av-mnist": (2.5, np.inf, 1000), "crema-d": (1.5, 10.0, 1500), "ur-funny": (4.0, 7.0, 800)}
    for name, values in published.items():
        for fusion in ("late", "early"):
            config = found[f"agm-{name}-{fusion}"]
            assert (config.alpha, config.max_gap, config.epochs) == values
            assert (config.method, config.fusion, config.masked) == ("agm", fusion, "exact")
            assert (config.start, config.stop) == (0, None)
            assert config.clip_above == config.clip_norm == (5.0 if name == "ur-funny" else 1.0)
    benchmark = [config for name, config in found.items() if name.startswith("balancebenchmark")]
    protocol = ("adamw", 1e-3, 0.01, "step", 10, 0.1, 30, 32, 42)
    assert len(benchmark) == 5
    for c in benchmark:
        settings = (c.optimizer, c.lr, c.weight_decay, c.schedule, c.step_epochs, c.step_factor, c.epochs, c.batch_size)
        assert (*settings, c.seed) == protocol
    assert found["mcr-crema-d"].options["strength"] == 0.1
    assert found["mcr-ave"].options["strength"] == 0.01


@pytest.mark.parametrize("name", RECIPES)
def test_each_says_where_it_is_from(name):
    text = RECIPES[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "# From: " in text
    page = (RECIPES[name].parent / "README.md").read_text(encoding="utf-8")
    assert f"{name}.toml" in page
