"""Pages of labels, numbers and one modality, and of runs that did not end."""

import pytest
import torch
from sklearn.metrics import multilabel_confusion_matrix

from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training import Observer, UserError, train
from agm.training.report import write_report
from agm.training.tune import tune_method

from .page import Page, config_of


def test_labels_have_their_counts(quick, place):
    random = torch.Generator().manual_seed(0)
    splits = []
    for samples in (40, 30):
        target = torch.rand(samples, 3, generator=random) < 0.4
        inputs = {name: target.float() + torch.randn(samples, 3, generator=random) for name in ("x", "y")}
        splits.append(Split(inputs, target))
    path = datasets.save(MultimodalData("labels", *splits, None, ("p", "q", "r")), place / "labels.npz")
    page, section = quick(path, "labels")
    head = ("label", "rightly yes", "wrongly yes", "wrongly no", "rightly no")
    tables = [table.rows[1:] for table in page.tables if table.rows[0] == list(head)]
    assert len(tables) == 5
    with torch.no_grad():
        said = section.result.network.eval()(**splits[1].inputs) > 0
    expected = multilabel_confusion_matrix(splits[1].target, said)
    for row, ((no, extra), (missed, yes)) in zip(tables[0], expected.tolist(), strict=True):
        assert list(map(int, row[1:])) == [yes, extra, missed, no]
    assert len(page.samples) == 4
    assert "macro-F1" in page.text


def test_numbers_that_lack_modalities_have_their_errors(quick, place):
    random = torch.Generator().manual_seed(0)
    splits = []
    for samples in (40, 30):
        inputs = {name: torch.randn(samples, 12, generator=random) for name in ("x", "y")}
        target = torch.stack([inputs["x"][:, 0] + inputs["y"][:, 0], inputs["y"][:, 1]], 1)
        present = torch.ones(samples, 2, dtype=torch.bool)
        present[::3, 1] = False
        splits.append(Split(inputs, target, present))
    path = datasets.save(MultimodalData("numbers", *splits, None, ("u", "v")), place / "numbers.npz")
    page, section = quick(path, "numbers")
    head = ("root mean squared error", "joint", "x, response", "x, alone", "y, response", "y, alone", "naming the mean")
    rows = page.table(*head)
    network, test = section.result.network.eval(), datasets.load(path).test
    with torch.no_grad():
        joint = network(**test.inputs)
        alone = network(x=test.inputs["x"] * 0, y=test.inputs["y"])
    having = test.present[:, 1]
    for place_, row in enumerate(rows):
        error, own = (joint - test.target)[:, place_], (alone - test.target)[having, place_]
        assert row[1] == f"{error.double().square().mean().sqrt():.4g}"
        assert row[5] == f"{own.double().square().mean().sqrt():.4g}"
    assert len(page.samples) == 4
    assert all(test.present[number].all() for number in page.samples)  # one alone has no balance


def test_one_modality_has_no_balance(quick, place):
    page, section = quick(place / "tiny.npz", "single", method="unimodal:image")
    assert [confusion.kind for confusion in section.confusions] == ["joint"]
    assert page.samples == []
    assert "One modality" in page.text


class _Interrupt(Observer):
    def epoch_finished(self, row):
        raise KeyboardInterrupt


def test_an_unfinished_run_is_told_as_such(place, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config_of(place), tmp_path / "half", observer=_Interrupt())
    path, _ = write_report([tmp_path / "half"])
    page = Page(path)
    assert "not finished: 1 of 3 epochs" in page.text
    assert f"agm train --resume {tmp_path / 'half'}" in page.text
    assert page.matrix("joint")
    (tmp_path / "half/checkpoint.pt").unlink()
    with pytest.raises(UserError, match="to have finished an epoch"):
        write_report([tmp_path / "half"])


def test_a_choice_of_settings_never_shows_the_test_split(place, tmp_path):
    tune_method(config_of(place, validation=0.3, epochs=1), {"alpha": [1.0]}, 1, tmp_path)
    (folder,) = [path.parent for path in tmp_path.glob("*/config.toml")]
    _, (section,) = write_report([folder])
    assert section.split == "validation"
    assert section.confusions[0].samples == round(0.3 * 49)
    assert f"{100 * section.confusions[0].right / section.confusions[0].samples:.1f}" == (
        f"{100 * section.figures['accuracy']:.1f}"
    )
