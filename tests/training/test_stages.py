"""Methods with a stage before the others: exact wherever they are broken off, never without all stages, and counted."""

import json

import pytest
import torch

from agm.strategies import taught
from agm.training import UserError, compare_methods, load_run, train
from agm.training.run_folder import read_table

from .stopping import Stop, StopAt
from .test_resume import assert_same_runs

TEACHERS = {"teacher_epochs": 2}
STAGES = {
    "g2d": TEACHERS,
    "di-mml": {"stage_epochs": 2, "contrast_from": 1},
    "reconboost": {"stage_epochs": 1, "rectify_epochs": 1},
}


def run_on(config, folder, **more):
    torch.manual_seed(999)  # another process would begin with other generators
    return train(config, folder, resume=(folder / "config.toml").exists(), checkpoint_every=1, **more)


@pytest.mark.parametrize("method", STAGES)
def test_a_run_goes_on_from_any_step(settings, tmp_path, method):
    """16 steps, 4 an epoch, with dropout and batch norm; broken off in the midst and at the end of epochs."""
    config = settings(method=method, options=STAGES[method], epochs=4)
    train(config, tmp_path / "whole")
    for stop in (StopAt(step=2), StopAt(epoch=1), StopAt(step=3), StopAt(epoch=2), StopAt(step=2)):
        with pytest.raises(Stop):
            run_on(config, tmp_path / "parts", observer=stop)
    run_on(config, tmp_path / "parts")
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("method", ["umt", "g2d"])
def test_a_run_that_is_broken_off_among_its_teachers(settings, tmp_path, monkeypatch, method):
    config = settings(method=method, options=TEACHERS, start=1 if method == "umt" else 0)
    train(config, tmp_path / "whole")
    teach, names = taught.teach, []

    def breaking(teacher, name, *arguments):
        names.append(name)
        if len(names) == 2:
            raise Stop
        teach(teacher, name, *arguments)

    monkeypatch.setattr(taught, "teach", breaking)
    with pytest.raises(Stop):
        run_on(config, tmp_path / "parts")
    run_on(config, tmp_path / "parts")
    assert names == ["audio", "image", "audio", "image"]
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("method", "options", "least", "named"),
    [
        ("di-mml", {"stage_epochs": 3}, 4, "stage_epochs"),
        ("di-mml", {}, 151, "stage_epochs"),
        ("reconboost", {"stage_epochs": 2, "rectify_epochs": 1}, 6, "stage_epochs, rectify_epochs"),
    ],
)
def test_too_few_epochs_for_all_stages(settings, tmp_path, method, options, least, named):
    with pytest.raises(UserError, match=rf"`epochs` to be {least} or more .* {method!r}, but got 3.*\({named}\)"):
        train(settings(method=method, options=options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_early_stopping_waits_for_the_last_stage(settings, tmp_path):
    config = settings(method="di-mml", options={"stage_epochs": 4}, epochs=8, validation=0.3, early_stopping=1, lr=1e-6)
    result = train(config, tmp_path / "run")
    first, second, *later = (row["accuracy"] for row in result.history)
    assert second <= first  # where it would have ended
    assert len(later) >= 3


def test_epochs_in_all(settings, tmp_path):
    """Those of teachers and copies are counted, also of a run that is read again."""
    methods = ["joint", "umt(teacher_epochs=3)", "g-blending(super_epoch=2)", "ensemble", "reconboost(stage_epochs=1)"]
    with pytest.raises(UserError, match="`epochs` to be 10 or more"):
        compare_methods(settings(validation=0.3), methods, 1, tmp_path / "out")
    found = compare_methods(settings(validation=0.3, epochs=4), methods[:4], 1, tmp_path / "out")
    # G-Blend trains 3 copies for 2 epochs twice.
    expected = {"joint": 4, methods[1]: 4 + 3, methods[2]: 4 + 2 * 3 * 2, "ensemble": 4}
    assert {c.method: c.values for c in found if c.metric == "epochs"} == {m: (n,) for m, n in expected.items()}
    for folder in (tmp_path / "out").iterdir():
        result, again = json.loads((folder / "result.json").read_text()), load_run(folder)
        assert result["epochs"] + result["extra_epochs"] == again.epochs
        assert len(read_table(folder / "metrics.csv")) == 4
