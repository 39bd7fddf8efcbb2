"""Each settings file of recipes/ trains, from the command line, on a copy of its set as it lies on disks."""

import re
from pathlib import Path

import numpy as np
import pytest

from agm.data.layouts import LAYOUTS
from agm.training import read_config, training_loop
from agm.training.cli import run
from agm.training.commands import one_run
from agm.training.run_folder import RunFolder, read_table

from ..data.layouts import trees, trees_more

RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))}
SETS = {
    "av-mnist": trees.av_mnist,
    "ave": trees.ave,
    "ave-clips": trees.ave_clips,
    "balanced-av": trees_more.balanced_av,
    "crema-d": trees.crema_d,
    "kinetics-sounds": trees.kinetics_sounds,
    "mosei": lambda root: trees.mult(root, "mosei_senti_data_noalign.pkl"),
    "mosei-words": trees.mosei_words,
    "ur-funny": trees.ur_funny,
    "vggsound": trees.vggsound,
}
PACKAGES = ("PIL", "soundfile", "soxr", "h5py")
ROWS = {"train": 4, "validation": 1, "test": 2}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Each set, written when it is first asked for."""
    for package in PACKAGES:
        pytest.importorskip(package)
    written = {}

    def root(layout):
        if layout not in written:
            written[layout] = SETS[layout](tmp_path_factory.mktemp("sets") / layout)
        return written[layout]

    return root


def conversion(name):
    """The command by which the recipe says that its data are made."""
    text = " ".join(line.removeprefix("#").strip() for line in RECIPES[name].read_text("utf-8").split("\n"))
    found = re.findall(r"agm (data convert \S+ \S+(?: --\S+ \S+)*? --output \S+\.npz)", text)
    assert len(found) == 1, f"{name} has {len(found)} such commands"
    return found[0].split()


def thin(path):
    """Some samples, and of large sounds every eighth step and bin: ResNets take minutes for all of them."""
    with np.load(path) as stored:
        arrays = dict(stored)
    rows = np.concatenate([np.flatnonzero(arrays["split"] == split)[:count] for split, count in ROWS.items()])
    samples = len(arrays["split"])
    for name, values in arrays.items():
        if values.shape[:1] == (samples,) and not name.startswith("meta."):
            large = name == "audio" and values.ndim == 4
            arrays[name] = values[rows][:, :, ::8, ::8] if large else values[rows]
    np.savez(path, **arrays)


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_on_its_set(name, roots, tmp_path, capsys, monkeypatch):
    # Pictures and checkpoints have tests of their own, and take most of the time.
    monkeypatch.setattr(one_run, "draw", lambda result: None)
    monkeypatch.setattr(training_loop, "save_checkpoint", lambda path, contents: None)
    monkeypatch.chdir(tmp_path)
    config = read_config(RECIPES[name])
    data, convert, layout, place, *rest = conversion(name)
    root = roots(layout) if place == "ROOT" else roots(layout) / place
    assert rest[-1] == config.dataset
    if "size" in LAYOUTS[layout].options:
        rest += ["--set", "size=16"]
    assert run([data, convert, layout, str(root), *rest]) == 0, capsys.readouterr().err
    thin(config.dataset)
    given = ["--epochs", "1", "--batch-size", "4", "--threads", "1", "--device", "cpu"]
    if config.encoders != "resnet18":
        given += ["--width", "8"]
    status = run(["train", "--config", str(RECIPES[name]), "--dataset", config.dataset, "--out", "run", *given])
    assert status == 0, capsys.readouterr().err
    row = read_table(RunFolder(tmp_path / "run").metrics)[-1]
    assert np.isfinite(row["train_loss"])
    recorded = read_config(RunFolder(tmp_path / "run").config)
    for setting in ("method", "encoders", "optimizer", "lr", "options"):
        assert getattr(recorded, setting) == getattr(config, setting)


def test_alpha_is_found_as_the_recipe_says(roots, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["agm-mosei-hybrid"]
    assert run(["data", "convert", "mosei-words", str(roots("mosei-words")), "--output", "mosei-words.npz"]) == 0
    command = re.search(r"# agm (tune .*)", recipe.read_text(encoding="utf-8"))[1].replace("THIS_FILE", str(recipe))
    command = command.replace("0.5,0.8,1.5,3", "0.5,3")
    given = ["--seeds", "1", "--epochs", "1", "--width", "8", "--threads", "1", "--out", "tuned"]
    assert run([*command.split(), *given]) == 0, capsys.readouterr().err
    rows = (tmp_path / "tuned/tune.csv").read_text().splitlines()
    assert [re.search(r"alpha=([0-9.]+)", row)[1] for row in rows[1:]] == ["0.5", "3"]


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
    for name, width in (("ave", 256), ("mosei", 512)):  # of these the code says so much, and alpha is not published
        config = found[f"agm-{name}-hybrid"]
        assert (config.method, config.fusion, config.masked) == ("agm", "cross-attention", "exact")
        assert (config.max_gap, config.width, config.seed, config.choose) == (np.inf, width, 999, "best")
        assert "\nalpha = " in (text := RECIPES[f"agm-{name}-hybrid"].read_text(encoding="utf-8"))
        assert re.search(r"\nalpha = .*# not published", text)
        assert "agm tune --config THIS_FILE" in text
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
