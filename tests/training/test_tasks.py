"""Text, several labels, numbers and class weights, through `agm train`'s own functions."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics

import agm.data
from agm.data import MultimodalData, Split
from agm.training import Config, UserError, evaluate, load_run, train
from agm.training.__main__ import main
from agm.training.answers import Answers, further_figures
from agm.training.problem import Problem
from agm.training.run_folder import read_table
from agm.training.samples import load_data

COMMON = {"epochs": 2, "batch_size": 16, "width": 8, "device": "cpu", "threads": 1}


def written(path, target, **more):
    """Sixty samples, whose sound tells the target and whose text tells a part of it."""
    rng = np.random.default_rng(0)
    rows = target.reshape(len(target), -1).astype(float)
    words = np.array([f"wort {'ja' if row[0] > 0 else 'nein'}".encode() for row in rows], dtype="S16")
    arrays = {
        "sound": (rows @ rng.normal(size=(rows.shape[1], 6)) + 0.3 * rng.normal(size=(len(rows), 6))).astype(
            np.float32
        ),
        "text": words,
        "target": target,
        "split": np.array((["train"] * 4 + ["validation", "test"]) * (len(rows) // 6)),
    }
    np.savez(path, **(arrays | more))
    return str(path)


@pytest.fixture
def labels(tmp_path):
    return written(tmp_path / "labels.npz", np.random.default_rng(1).random((60, 4)) < 0.4)


@pytest.fixture
def numbers(tmp_path):
    return written(tmp_path / "numbers.npz", np.random.default_rng(2).normal(size=(60, 2)) * 3)


@pytest.mark.parametrize(
    "method", ["agm", "joint", "multi-loss", "mmpareto", "unimodal:text", "alone:text", "umt", "stacked"]
)
def test_labels_train(tmp_path, labels, method):
    result = train(Config(dataset=labels, method=method, fusion="early", **COMMON), tmp_path / "run")
    assert set(result.evaluation.further) == {"micro_f1", "macro_f1"}
    rows = read_table(tmp_path / "run" / "metrics.csv")
    assert 0 <= rows[-1]["micro_f1"] <= 1
    assert (
        json.loads((tmp_path / "run" / "result.json").read_text())["macro_f1"] == result.evaluation.further["macro_f1"]
    )
    again = load_run(tmp_path / "run")
    assert again.evaluation == result.evaluation


@pytest.mark.parametrize("method", ["ensemble", "stacked"])
def test_ensembles_of_numbers(tmp_path, numbers, method):
    """The text tells one bit of two numbers alone: a mean of both halves what the sound says, a head does not."""
    settings = COMMON | {"epochs": 25, "lr": 0.02}
    result = train(Config(dataset=numbers, method=method, fusion="early", **settings), tmp_path / "run")
    assert (result.evaluation.accuracy > 0.9) == (method == "stacked")
    assert load_run(tmp_path / "run").evaluation == result.evaluation


@pytest.mark.parametrize("error", ["squared", "absolute"])
def test_numbers_train(tmp_path, numbers, error):
    settings = COMMON | {"epochs": 25, "error": error, "lr": 0.02}
    result = train(Config(dataset=numbers, method="agm", fusion="late", **settings), tmp_path / "run")
    assert result.evaluation.accuracy > 0.6  # of the variance
    assert result.evaluation.further["correlation"] > 0.8
    steps = read_table(tmp_path / "run" / "steps.csv")
    assert all(np.isfinite(row["score_sound"]) for row in steps)
    # The training accuracy is of the same kind as the other.
    rows = read_table(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["train_accuracy"] > 0.5


def test_figures_are_those_of_scikit_learn():
    torch.manual_seed(0)
    logits, truth = torch.randn(50, 5), torch.rand(50, 5) < 0.3
    truth[:, 4] = False
    found = further_figures(logits, truth)
    guess = (logits > 0).numpy()
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="micro"))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro", zero_division=0))
    share = Answers(truth).right(logits.unsqueeze(0), truth) / 50
    assert share.item() == pytest.approx(1 - metrics.hamming_loss(truth, guess))

    values, target = torch.randn(50, 3), torch.randn(50, 3) * torch.tensor([1.0, 5.0, 0.1])
    found = further_figures(values, target)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(target, values), rel=1e-6)
    pairs = zip(values.T.numpy(), target.T.numpy(), strict=True)
    assert found["correlation"] == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))
    explained = Answers(target).right(values.unsqueeze(0), target) / 50
    assert explained.item() == pytest.approx(metrics.r2_score(target, values), rel=1e-6)


def test_figures_of_a_split_do_not_hang_on_batches(numbers, labels):
    from agm import models

    for path, outputs in ((numbers, 2), (labels, 4)):
        data = agm.data.load(path)
        torch.manual_seed(0)
        network = models.build("late", {"sound": (6,), "text": (16,)}, outputs, width=8, vocabularies={"text": 256})
        whole, parts = (evaluate(network, data.train, ("sound", "text"), size) for size in (100, 7))
        assert whole.further == pytest.approx(parts.further)
        assert (whole.loss, whole.accuracy) == pytest.approx((parts.loss, parts.accuracy))
        assert whole.responses == pytest.approx(parts.responses)
        plain = F.mse_loss if outputs == 2 else F.binary_cross_entropy_with_logits
        logits = network.eval()(**data.train.inputs)
        assert whole.loss == pytest.approx(plain(logits, data.train.target.float()).item(), rel=1e-5)


def test_nan_is_no_answer():
    nan = torch.full((1, 3, 2), torch.nan)
    for target in (torch.tensor([0, 0, 1]), torch.zeros(3, 2).bool(), torch.randn(3, 2)):
        assert Answers(target).right(nan, target).item() == 0


def test_class_weights():
    target = torch.tensor([0] * 6 + [1] * 2)
    split = Split({"a": torch.zeros(8, 1)}, target)
    data = MultimodalData("x", split, split, None, ("p", "q", "none"))
    weighted = Problem.of(data, Config(class_weights="balanced", device="cpu")).criterion
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([8 / 18, 8 / 6, 0.0])
    torch.testing.assert_close(weighted(logits, target), F.cross_entropy(logits, target, weight=weights))
    # Both classes together count alike.
    assert (weights[target][:6].sum() - weights[target][6:].sum()).abs() < 1e-6

    truth = torch.tensor([[True, False]] + [[False, False]] * 3)
    some = Split({"a": torch.zeros(4, 1)}, truth)
    labels = MultimodalData("x", some, some, None, ("p", "q"))
    binary = Problem.of(labels, Config(class_weights="balanced", device="cpu")).criterion
    expected = F.binary_cross_entropy_with_logits(logits[:4, :2], truth.float(), pos_weight=torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(binary(logits[:4, :2], truth), expected)


def test_what_a_task_does_not_have(tmp_path, labels, numbers):
    refused = {
        "which needs one class a sample. Use one of .*agm": {"dataset": labels, "method": "ogm-ge"},
        "setting `error` with data whose target are numbers": {"dataset": labels, "error": "absolute"},
        "setting `class_weights` with data whose target are classes": {"dataset": numbers, "class_weights": "balanced"},
        "--modalities to be among sound, text, once each, but got sound, smell": {
            "dataset": labels,
            "modalities": "sound, smell",
        },
    }
    for message, settings in refused.items():
        with pytest.raises(UserError, match=message):
            train(Config(**COMMON, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_modalities_are_chosen(tmp_path, labels):
    data = load_data(Config(dataset=labels, modalities="text,sound"))
    assert data.modalities == ("text", "sound")
    assert load_data(Config(dataset="emoji", modalities="image, name_ja")).modalities == ("image", "name_ja")
    result = train(Config(dataset=labels, modalities="sound", method="joint", **COMMON), tmp_path / "run")
    assert result.modalities == ("sound",)


def test_token_ids(tmp_path):
    target = np.arange(60) % 3
    tokens = np.column_stack([target + 7, np.zeros(60, int), np.full(60, 4)])
    path = written(tmp_path / "ids.npz", target, tokens=tokens)
    data = load_data(Config(dataset=path))
    assert Problem.of(data, Config(device="cpu")).vocabularies == {"text": 256, "tokens": 10}
    settings = COMMON | {"epochs": 15, "lr": 0.1}
    result = train(Config(dataset=path, method="unimodal:tokens", **settings), tmp_path / "run")
    assert result.evaluation.accuracy == 1
    bad = written(tmp_path / "bad.npz", target, tokens=tokens - 1)
    with pytest.raises(UserError, match=r"token ids in 'tokens' to be from 0 \(padding\) to 16777215, but got -1"):
        train(Config(dataset=bad, **COMMON), tmp_path / "other")


def test_what_is_shown_of_numbers_is_called_variance_explained(tmp_path, numbers, capsys):
    """R squared is no accuracy, and may be below 0."""
    common = ["--dataset", numbers, "--epochs", "1", "--width", "8", "--device", "cpu", "--threads", "1"]
    assert main(["train", *common, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "validation variance explained " in told
    assert "accuracy" not in told
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "<th>variance explained</th>" in re.sub(r"<th[^>]*>", "<th>", (tmp_path / "run" / "report.html").read_text())
    capsys.readouterr()
    assert main(["compare", *common, "--methods", "joint,agm", "--seeds", "2", "--out", str(tmp_path / "all")]) == 0
    told = capsys.readouterr().out
    assert "test split, variance explained in percent" in told
    assert "accurac" not in told
    assert (tmp_path / "all" / "compare.md").read_text().startswith("| test split, variance explained in % |")
    assert main(["report", str(tmp_path / "all")]) == 0
    page = (tmp_path / "all" / "report.html").read_text()
    assert "joint variance explained, %" in page
    assert "variance explained of the methods" in page
    assert "accurac" not in page
    capsys.readouterr()
    tuned = ["tune", *common, "--setting", "alpha=0,1", "--seeds", "1", "--out", str(tmp_path / "tuned")]
    assert main(tuned) == 0
    assert "variance explained ± sd" in capsys.readouterr().out
