import csv
import tomllib
from collections import Counter
from dataclasses import replace

import pytest
import torch
from matplotlib import image

from agm import data as datasets
from agm import models
from agm.competition import fused_features, measure_strength
from agm.data import MultimodalData, Split
from agm.training import (
    CompetitionSettings,
    Config,
    UserError,
    concept_method,
    concepts_of,
    load_run,
    run_competition,
    strength_apart,
    strength_of,
    train,
    training_loop,
)
from agm.training.__main__ import main
from agm.training.competition_settings import held_out
from agm.training.plots import competition_figure
from agm.training.run_folder import RunFolder, read_table
from agm.training.samples import batches
from agm.training.single_modality import SingleModality

from .conftest import split_of

SHAPES = {"audio": (6,), "image": (1, 4, 4)}
MEASUREMENT = CompetitionSettings(holdout=0.4, resamples=50)

pytestmark = pytest.mark.usefixtures("plain_pictures")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole measurement: its settings, folder and result."""
    folder = tmp_path_factory.mktemp("competition")
    tiny = MultimodalData("tiny", split_of(49, 0), split_of(30, 1), None, ("a", "b", "c"))
    dataset = str(datasets.save(tiny, folder / "tiny.npz"))
    config = Config(dataset=dataset, fusion="early", width=8, epochs=3, batch_size=16, threads=1, device="cpu", seed=5)
    return config, folder / "out", run_competition(config, ["joint", "agm"], folder / "out", MEASUREMENT)


def built(fusion: str, seed: int, names=tuple(SHAPES)) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.build(fusion, {name: SHAPES[name] for name in names}, 3, width=8)


def test_strengths_are_those_of_features_and_concepts():
    """More samples than a pass takes, so that the batches must fit together."""
    fit, test = split_of(300, 3), split_of(400, 4)
    network = built("early", 0)
    alone = {name: SingleModality(built("early", 1 + number), name, SHAPES) for number, name in enumerate(SHAPES)}
    concepts = concepts_of(alone, fit, test)
    strengths = strength_of(network, fit, test, concepts, ridge=2.0, seed=1)
    for name, (fit_concept, concept) in concepts.items():
        for split, values in ((fit, fit_concept), (test, concept)):
            others = {other: torch.zeros_like(x) for other, x in split.inputs.items() if other != name}
            expected = alone[name].network.eval()(**{name: split.inputs[name]}, **others)
            torch.testing.assert_close(values, expected)
        features, others = (fused_features(network, split.inputs) for split in (fit, test))
        expected = measure_strength(features, fit_concept, others, concept, 2.0, seed=1)
        assert strengths[name].value == pytest.approx(expected.value, rel=1e-5)
        assert (strengths[name].low, strengths[name].high) == pytest.approx((expected.low, expected.high), rel=1e-4)
    named = strength_of(network, fit, test, concepts, ridge=2.0, seed=1, layer="classifier")
    assert named == strengths
    assert strength_of(network, fit, test, concepts)["audio"].ridge != 2.0


@pytest.mark.parametrize("fusion", ["late", "early"])
def test_networks_apart_are_measured_side_by_side(fusion):
    fit, test = split_of(60, 3), split_of(40, 4)

    def networks(seed):
        if fusion == "late":
            return {name: built(fusion, seed, (name,)) for name in SHAPES}
        return {name: SingleModality(built(fusion, seed + number), name, SHAPES) for number, name in enumerate(SHAPES)}

    own, concepts = networks(0), concepts_of(networks(5), fit, test)

    def features(split):
        parts = []
        for name, network in own.items():
            if fusion == "late":
                parts.append(fused_features(network, {name: split.inputs[name]}))
            else:
                inputs = {other: x if other == name else torch.zeros_like(x) for other, x in split.inputs.items()}
                parts.append(fused_features(network.network, inputs))
        return torch.cat(parts, 1)

    strengths = strength_apart(own, fit, test, concepts, ridge=2.0)
    for name, (fit_concept, concept) in concepts.items():
        expected = measure_strength(features(fit), fit_concept, features(test), concept, 2.0)
        assert strengths[name].value == pytest.approx(expected.value, rel=1e-5)
    # What a network's own features are asked for, they give: only the penalty is between.
    same = strength_apart(own, fit, test, concepts_of(own, fit, test), ridge=1e-9)
    assert all(strength.value < 1e-4 for strength in same.values())


def test_alone_is_a_method_of_one_modality(settings, tmp_path):
    result = train(settings(method="alone:image"), tmp_path / "run")
    assert result.modalities == ("image",)
    assert result.evaluation.accuracy == result.evaluation.responses["image"]
    assert isinstance(result.network, SingleModality)
    assert set(dict(result.network.network.encoders.named_children())) == {"audio", "image"}
    again = load_run(tmp_path / "run")
    assert again.evaluation == result.evaluation
    with pytest.raises(UserError, match=r"alone:NAME to name one of audio, image, but got 'text'"):
        train(settings(method="alone:text"), tmp_path / "other")


def test_the_concept_of_late_fusion_is_the_unimodal_network():
    methods = {fusion: concept_method(fusion, "audio") for fusion in models.fusions}
    assert methods.pop("late") == methods.pop("late-sum") == "unimodal:audio"
    assert set(methods.values()) == {"alone:audio"}


def test_samples_are_held_out_once_and_for_all(data):
    divided, again, other = (held_out(data, 0.3, seed) for seed in (0, 0, 1))
    assert [len(split) for split in divided.splits.values()] == [34, 15, 30]
    rows = torch.cat([split.inputs["audio"] for split in (divided.train, divided.validation)])
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in data.train.inputs["audio"].tolist()}
    place = (data.train.inputs["audio"] == divided.validation.inputs["audio"][3]).all(1).nonzero().item()
    assert divided.validation.target[3] == data.train.target[place]
    assert torch.equal(divided.validation.inputs["image"][3], data.train.inputs["image"][place])
    assert divided.test is data.test
    assert torch.equal(again.validation.inputs["audio"], divided.validation.inputs["audio"])
    assert not torch.equal(other.validation.inputs["audio"], divided.validation.inputs["audio"])
    for share in (0.01, 0.99):
        with pytest.raises(UserError, match="--holdout to leave two samples"):
            held_out(data, share, 0)


def test_every_epoch_of_every_method_has_a_row(finished):
    _, folder, competition = finished
    count = Counter((row["method"], row["epochs"]) for row in competition.rows)
    assert count == {("apart", 3): 2} | {(method, epochs): 2 for method in ("joint", "agm") for epochs in range(4)}
    with open(folder / "competition.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["strength"]) for row in rows] == [row["strength"] for row in competition.rows]
    assert all(row["low"] <= row["strength"] <= row["high"] for row in competition.rows)
    assert {row["samples"] for row in competition.rows} == {30}
    # The concepts have other seeds than what is measured.
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *("joint-seed5", "agm-seed5"),
        *(f"alone-{name}-seed{seed}" for name in ("audio", "image") for seed in (5, 6)),
    }
    assert competition.concepts == {
        name: RunFolder(folder / f"alone-{name}-seed6").read_result()["accuracy"] for name in ("audio", "image")
    }


def test_the_rows_are_what_the_networks_have(finished):
    _, folder, competition = finished
    divided = datasets.load(folder / "data.npz")
    networks = [
        {name: load_run(folder / f"alone-{name}-seed{seed}").network for name in divided.modalities} for seed in (6, 5)
    ]
    concepts = concepts_of(networks[0], divided.validation, divided.test)
    options = {"ridge": "cv", "resamples": 50}
    expected = {
        ("agm", 3): strength_of(
            load_run(folder / "agm-seed5").network, divided.validation, divided.test, concepts, **options
        ),
        ("joint", 0): strength_of(built("early", 5), divided.validation, divided.test, concepts, **options),
        ("apart", 3): strength_apart(networks[1], divided.validation, divided.test, concepts, **options),
    }
    for (method, epochs), strengths in expected.items():
        for name, strength in strengths.items():
            (row,) = (
                row
                for row in competition.rows
                if (row["method"], row["epochs"], row["modality"]) == (method, epochs, name)
            )
            assert (row["strength"], row["low"], row["high"], row["ridge"]) == pytest.approx(
                (strength.value, strength.low, strength.high, strength.ridge), rel=1e-6
            )
    assert competition.last("agm", "audio")["epochs"] == 3


def test_measuring_changes_nothing_in_a_run(finished, tmp_path):
    """Early fusion has dropout: a number drawn too many would show."""
    config, folder, competition = finished
    plain = train(replace(config, dataset=str(folder / "data.npz"), method="agm"), tmp_path / "plain")
    measured = load_run(folder / "agm-seed5")
    weights = measured.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.network.state_dict().items())
    assert competition.accuracies["agm"] == plain.evaluation.accuracy


def test_what_was_held_out_is_not_trained_on(finished, monkeypatch, tmp_path):
    _, folder, _ = finished
    config = load_run(folder / "joint-seed5").config
    divided = held_out(datasets.load(folder.parent / "tiny.npz"), 0.4, 5)
    assert datasets.load(config.dataset).train.target.tolist() == divided.train.target.tolist()
    assert sum(map(len, batches(len(divided.train), 16, 5, 0))) == 29


def test_an_interrupted_measurement_goes_on(finished, tmp_path, monkeypatch):
    config, _, competition = finished
    step, calls = training_loop.Trainer._take_step, []

    def interrupted(self, index):
        if self.config.method == "agm":
            calls.append(index)
            if len(calls) == 4:  # in its second epoch
                raise KeyboardInterrupt
        return step(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop.Trainer, "_take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_competition(config, ["agm"], tmp_path, MEASUREMENT)
    table = tmp_path / "agm-seed5" / "competition.csv"
    assert [row["epochs"] for row in read_table(table)] == [0, 0, 1, 1]
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))  # as if it had come between the two rows of an epoch
    again = run_competition(config, ["agm"], tmp_path, MEASUREMENT)
    assert again.rows == [row for row in competition.rows if row["method"] != "joint"]


def test_finished_runs_are_not_repeated_and_methods_can_be_added(finished, monkeypatch):
    config, folder, competition = finished
    before = {path: path.read_bytes() for path in folder.rglob("*.pt")}
    monkeypatch.setattr(training_loop.Trainer, "_take_step", None)
    assert run_competition(config, ["joint", "agm"], folder, MEASUREMENT).rows == competition.rows
    only = run_competition(config, ["agm"], folder, MEASUREMENT)
    assert only.rows == [row for row in competition.rows if row["method"] != "joint"]
    run_competition(config, ["joint", "agm"], folder, MEASUREMENT)
    assert {path: path.read_bytes() for path in folder.rglob("*.pt")} == before


def test_other_settings_or_data_are_refused(finished):
    config, folder, _ = finished
    with pytest.raises(UserError, match=r"holdout \(0.5, 0.4\), resamples \(1000, 50\).*--out"):
        run_competition(config, ["joint"], folder, CompetitionSettings(holdout=0.5))
    with pytest.raises(UserError, match=r"lr \(0.5, 0.02\)"):
        run_competition(replace(config, lr=0.5), ["joint"], folder, MEASUREMENT)
    settings = (folder / "competition.toml").read_text()
    assert "--methods joint,agm --config training.toml --ridge cv --holdout 0.4 --every 1 --resamples 50\n" in settings
    assert tomllib.loads(settings)["competition"]["holdout"] == 0.4
    try:
        (folder / "competition.toml").write_text("what\n")
        with pytest.raises(UserError, match=r"competition\.toml.*does not read"):
            run_competition(config, ["joint"], folder, MEASUREMENT)
    finally:
        (folder / "competition.toml").write_text(settings)
    values = (folder / "data.npz").read_bytes()
    try:
        datasets.save(held_out(datasets.load(folder.parent / "tiny.npz"), 0.4, 6), folder / "data.npz")
        with pytest.raises(UserError, match=r"data\.npz.*contents changed"):
            run_competition(config, ["joint"], folder, MEASUREMENT)
        (folder / "data.npz").write_bytes(b"")
        with pytest.raises(UserError, match=r"data\.npz"):
            run_competition(config, ["joint"], folder, MEASUREMENT)
    finally:
        (folder / "data.npz").write_bytes(values)


def test_a_run_that_was_not_measured_is_refused(finished):
    config, folder, _ = finished
    table = folder / "joint-seed5" / "competition.csv"
    kept = table.read_text()
    try:
        table.unlink()
        with pytest.raises(UserError, match=r"joint-seed5' to have been measured.*no strengths after 0, 1, 2 epochs"):
            run_competition(config, ["joint"], folder, MEASUREMENT)
    finally:
        table.write_text(kept)


def test_a_validation_split_is_what_the_regression_is_fitted_on(data, tmp_path):
    whole = replace(data, validation=split_of(20, 7))
    path = datasets.save(whole, tmp_path / "whole.npz")
    config = Config(dataset=str(path), fusion="late", width=8, epochs=2, batch_size=16, threads=1, device="cpu")
    result = run_competition(config, ["joint"], tmp_path / "out", CompetitionSettings(ridge=1.0, every=5, resamples=20))
    assert not (tmp_path / "out/data.npz").exists()
    assert (tmp_path / "out/unimodal-audio-seed1").is_dir()
    assert [row["epochs"] for row in result.rows if row["method"] == "joint"] == [0, 0, 2, 2]
    concepts = concepts_of(
        {name: load_run(tmp_path / f"out/unimodal-{name}-seed1").network for name in whole.modalities},
        whole.validation,
        whole.test,
    )
    network = load_run(tmp_path / "out/joint-seed0").network
    expected = strength_of(network, whole.validation, whole.test, concepts, ridge=1.0)
    assert result.last("joint", "image")["strength"] == pytest.approx(expected["image"].value, rel=1e-6)


def test_mistakes_show_before_the_first_run(settings, data, tmp_path):
    out = tmp_path / "out"
    for methods, message in [
        ([], "one or more different methods, but got none"),
        (["agm", "agm"], "one or more different methods, but got agm, agm"),
        (["joint", "unimodal:audio"], "train on all modalities, but got 'unimodal:audio'"),
        (["amg"], "but got 'amg'"),
    ]:
        with pytest.raises(UserError, match=message):
            run_competition(settings(), methods, out)
    with pytest.raises(UserError, match="but got 'middle'"):
        run_competition(settings(fusion="middle"), ["joint"], out)
    single = MultimodalData(
        "one",
        *(Split({"audio": split.inputs["audio"]}, split.target) for split in (data.train, data.test)),
        None,
        ("a", "b", "c"),
    )
    path = datasets.save(single, tmp_path / "one.npz")
    with pytest.raises(UserError, match="two modalities or more, but got audio"):
        run_competition(settings(dataset=str(path)), ["joint"], out)
    for wrong, message in [
        ({"ridge": -1.0}, "--ridge.*cv, but got -1.0"),
        ({"ridge": float("nan")}, "--ridge"),
        ({"holdout": 1.0}, "--holdout"),
        ({"every": 0}, "--every"),
        ({"resamples": 1}, "--resamples"),
    ]:
        with pytest.raises(UserError, match=message):
            CompetitionSettings(**wrong)
    assert not out.exists()


def test_what_cannot_be_measured_is_the_users_to_know(data, settings, tmp_path):
    few = replace(data, test=Split({name: x[:3] for name, x in data.test.inputs.items()}, data.test.target[:3]))
    path = datasets.save(few, tmp_path / "few.npz")
    with pytest.raises(UserError, match=r"cannot be measured: .*more samples than outputs, but got 3 samples of 3"):
        run_competition(settings(dataset=str(path), epochs=1), ["joint"], tmp_path / "out", MEASUREMENT)


def test_the_picture_has_a_line_a_method(finished):
    _, _, competition = finished
    figure = competition_figure(competition, "title")
    for axes, modality in zip(figure.axes, competition.modalities, strict=True):
        assert axes.get_title(loc="left") == modality
        apart, *lines = axes.get_lines()
        assert set(apart.get_ydata()) == {competition.last("apart", modality)["strength"]}
        for method, line, band in zip(competition.methods, lines, axes.collections, strict=True):
            rows = [row for row in competition.rows if (row["method"], row["modality"]) == (method, modality)]
            assert line.get_xdata().tolist() == [0, 1, 2, 3]
            assert line.get_ydata().tolist() == [row["strength"] for row in rows]
            corners = band.get_paths()[0].vertices[:, 1]
            assert (corners.min(), corners.max()) == (
                min(row["low"] for row in rows),
                max(row["high"] for row in rows),
            )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["joint", "agm", "trained apart"]


def test_the_command(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = f"competition --methods joint --ridge 2 --every 2 --dataset {dataset} --width 8 --epochs 2".split()
    arguments += ["--resamples", "20", "--threads", "1"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    folder = tmp_path / "runs/competition"
    rows = read_table(folder / "competition.csv")
    assert [row["epochs"] for row in rows] == [2, 2, 0, 0, 2, 2]
    assert {row["ridge"] for row in rows} == {2.0}
    assert "unimodal:image seed 1  accuracy" in output
    assert f"{rows[-1]['strength']:.3f} [{rows[-1]['low']:.3f}, {rows[-1]['high']:.3f}]" in output
    assert image.imread(folder / "competition.png").ndim == 3
    assert (folder / "joint-seed0/training.png").exists()
    (folder / "competition.png").unlink()

    # The settings that it leaves say the same.
    repeat = f"competition --methods joint --config {folder}/training.toml --ridge 2.0 --every 2 --resamples 20".split()
    assert main(repeat) == 0
    assert capsys.readouterr().out.count("finished before") == 5
    assert (folder / "competition.png").exists()


def test_the_command_fails_in_one_line(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = ["competition", "--dataset", str(dataset), "--width", "8", "--epochs", "1", "--threads", "1"]
    for arguments, message in [
        (["--ridge", "auto"], "'--ridge': 'auto' is not a valid float"),
        (["--ridge", "-1"], "--ridge to be a finite number >= 0, or cv, but got -1.0"),
        (["--methods", "joint,unimodal:audio"], "'unimodal:audio'"),
        (["--method", "joint"], "No such option '--method'"),
    ]:
        assert main([*base, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error

    def interrupted(self, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_loop.Trainer, "_take_step", interrupted)
    assert main(base) == 130
    assert capsys.readouterr().err == ("Interrupted. Continue with: the same command: finished runs are not repeated\n")
