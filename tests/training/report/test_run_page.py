"""The page of a run, against figures that are computed here by other means."""

import html
import json
import math
import re

import pytest
import torch
from sklearn.metrics import confusion_matrix

import agm
from agm.training.exports import run_command
from agm.training.report.balance import balanced_first, unbalanced_first
from agm.training.report.predictions import Predictions, View

from .page import EVIL, NAMES, config_of


def test_figures_are_those_of_the_result(page, run):
    result = json.loads((run / "result.json").read_text())
    rows = page.table("", "accuracy", "response", "without it", "coefficient", "score")
    assert rows[0][:2] == ["joint", f"{100 * result['accuracy']:.1f}"]
    for name, row in zip(("audio", "image"), rows[1:], strict=True):
        expected = [f"{100 * result[f'response_{name}']:.1f}", f"{100 * result[f'absent_{name}']:.1f}"]
        assert row[:5] == [name, "", *expected, f"{result[f'coefficient_{name}']:.3f}"]
    assert f"macro-F1{result['macro_f1']:.3f}" in page.text
    assert f"loss{result['loss']:.3f}" in page.text


def test_confusions_are_those_of_sklearn(page, asked):
    views = {("joint", ""): asked.joint}
    for place, name in enumerate(("audio", "image")):
        views |= {("response", name): asked.responses[place], ("alone", name): asked.alone[place]}
    for view, logits in views.items():
        expected = confusion_matrix(asked.target, logits.argmax(1), labels=range(3))
        assert page.matrix(*view) == expected.tolist()
    assert len({str(page.matrix(*view)) for view in views}) > 2  # they do differ


def test_contributions_are_shapley_values_of_the_accuracy(page, asked):
    joint, audio, picture = [float((z.argmax(1) == asked.target).double().mean()) for z in (asked.joint, *asked.alone)]
    empty = int(torch.bincount(asked.target).max()) / len(asked.target)
    rows = {row[0]: row for row in page.table("", "alone, %", "contribution", "value")}
    for name, own, other in (("audio", audio, picture), ("image", picture, audio)):
        assert rows[name][1] == f"{100 * own:.1f}"
        assert float(rows[name][2]) == pytest.approx(100 * ((own - empty) + (joint - other)) / 2, abs=0.051)
    assert float(rows["cooperation"][2]) == pytest.approx(100 * (joint - audio - picture + empty), abs=0.051)
    assert max(abs(float(row[2])) for row in rows.values()) > 1


def test_samples_are_the_most_and_the_least_balanced_ones(page, asked):
    hits = [(z.argmax(1) == asked.target).double() for z in (asked.joint, *asked.alone)]
    # v(both) = 2 if the joint answer is right, v(one) = 1 if that one's is
    values = torch.stack([(2 * hits[0] - hits[2] + hits[1]) / 2, (2 * hits[0] - hits[1] + hits[2]) / 2], 1)
    costs = torch.stack([-z.log_softmax(1)[range(30), asked.target] for z in asked.responses], 1).double()
    spread_, gap = (values[:, 0] - values[:, 1]).abs().tolist(), (costs[:, 0] - costs[:, 1]).abs().tolist()
    least = sorted(range(30), key=lambda n: (-spread_[n], -gap[n]))[:5]
    most = sorted(range(30), key=lambda n: (not hits[0][n], spread_[n], gap[n]))[:5]
    assert page.samples == [*least, *most]
    assert not set(least) & set(most)
    shown = [table.rows[1:] for table in page.tables if table.rows[0] == ["", "value", "score", "response"]]
    for number, rows in zip(page.samples, shown, strict=True):
        for m, name in enumerate(("audio", "image")):
            answer = NAMES[asked.responses[m][number].argmax()]
            assert rows[m] == [name, f"{values[number, m]:+.2f}", f"{costs[number, m]:.3f}", answer]
    articles = page.source.split("<article")[1:]
    for number, article in zip(page.samples, articles, strict=True):
        truth, answer = NAMES[asked.target[number]], NAMES[asked.joint[number].argmax()]
        assert f"<span>{html.escape(truth)}</span> → <span class=" in article
        assert f'">{html.escape(answer)} {"✓" if truth == answer else "✗"}</span>' in article
        assert f"{100 * asked.joint[number].softmax(0).max():.1f} %" in article


def test_values_decide_about_balance_before_scores_do():
    values = torch.tensor([[1.5, 0.5], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [1.0, math.nan]])
    scores = torch.tensor([[0.0, 9.0], [1.0, 2.0], [1.0, 1.0], [1.0, 1.5], [1.0, 1.1], [1.0, math.nan]])
    right = [True, True, False, True, True, True]
    target = torch.zeros(6, dtype=torch.long)
    answers = torch.tensor([0 if one else 1 for one in right])
    joint = View("joint", "", answers, torch.ones(6, dtype=torch.bool))
    names = dict.fromkeys(("x", "y"), 0.0)
    found = agm.Contributions(("x", "y"), 6, 5 / 6, 1.0, names, names, names, 0.0, names, (), values)
    predictions = Predictions("classes", target, (joint,), scores.double(), None, found)
    # The last one has a single modality. The third is wrong: nothing there is shared.
    assert unbalanced_first(predictions) == [4, 0, 1, 3, 2]
    assert balanced_first(predictions) == [3, 1, 0, 4, 2]


def test_a_page_stands_alone_and_its_links_lead_somewhere(page):
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.loaded
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.loaded)
    assert not re.search(r"(?i)https?:|//[a-z]|@import|url\((?!#)", re.sub(r'"data:[^"]+"', "", page.source))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.source
    assert len(page.ids) == len(set(page.ids))
    places = {f"#{place}" for place in page.ids}
    assert page.links
    assert set(page.links) <= places
    assert {address for address in page.loaded if address[0] == "#"} <= places
    assert set(re.findall(r"url\((#[^)]+)\)", page.source)) <= places


def test_names_of_others_are_text(page):
    assert EVIL in page.text
    assert EVIL not in page.source
    assert page.matrix("joint")
    (head,) = [table.rows[0] for table in page.tables if table.view == ("joint", "")]
    assert head[1:] == list(NAMES)


def test_figures_take_the_colours_of_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)
    curves = [drawing for drawing in drawings if "viewBox" in drawing and "polyline" not in drawing]
    assert len(curves) == 6
    assert not re.search(r"#[0-9a-f]{6}", "".join(curves))
    declared = set(re.findall(r"(--[\w-]+):", page.source))
    assert set(re.findall(r"var\((--[\w-]+)\)", page.source)) <= declared


def test_settings_environment_and_commands(page, run, place):
    changed, unchanged = [t.rows[1:] for t in page.tables if t.rows[0] == ["setting", "value", "default", ""]]
    assert [row[0] for row in changed] == ["dataset", "width", "epochs", "batch_size", "lr", "device", "threads"]
    assert ["alpha", "1.5", "1.5"] in [row[:3] for row in unchanged]
    assert f"agm train --config {run}/config.toml" in page.text
    given = f"--dataset {place}/tiny.npz --width 8 --epochs 3 --batch-size 16 --lr 0.1"
    assert f"agm train {given} The first repeats it" in page.text
    assert torch.__version__ in page.text


def test_the_command_of_a_run_gives_its_settings(tmp_path, place):
    from agm.training.commands.options import given_options

    config = config_of(place, method="ogm-ge", options={"alpha": 0.9, "noise": False}, clip_norm=2.0)
    words = run_command(config).split()
    assert words[:2] == ["agm", "train"]
    options = [words[place + 1] for place, word in enumerate(words) if word == "--option"]
    assert given_options(options)["options"] == config.options
    assert words[words.index("--clip-norm") + 1] == "2.0"
    assert "--threads" not in words
