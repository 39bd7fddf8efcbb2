"""The page of `agm report`, read as a browser reads it, against figures that are computed here by other means."""

import base64
import html
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import image
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

import agm
from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training import Config, Observer, UserError, compare_methods, load_run, train
from agm.training.__main__ import main
from agm.training.competition_observer import COLUMNS
from agm.training.exports import interval, run_command, spread, write_csv, write_settings
from agm.training.report import write_report
from agm.training.report.balance import balanced_first, unbalanced_first
from agm.training.report.confusions import confusion_matrix as counted
from agm.training.report.confusions import confusions
from agm.training.report.media import medium
from agm.training.report.predictions import Predictions, View
from agm.training.run_folder import write_rows
from agm.training.tune import tune_method

EVIL = "<script>alert(1)</script>"
NAMES = ("a", "b", EVIL)


class Page(HTMLParser):
    """Its tables, links, places, samples and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tables: list[SimpleNamespace] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.samples: list[int] = []
        self.words: list[str] = []
        self._cell: list[str] | None = None
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag in ("use", "image"):
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if "data-sample" in given:
            self.samples.append(int(given["data-sample"]))
        if tag == "table":
            self.tables.append(SimpleNamespace(rows=[], view=(given.get("data-view"), given.get("data-modality"))))
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th"):
            self._cell = []
        if tag == "br" and self._cell is not None:
            self._cell.append(" ")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1].rows[-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, text):
        self.words.append(text)
        if self._cell is not None:
            self._cell.append(text)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def table(self, *head: str) -> list[list[str]]:
        """The rows below this head."""
        (found,) = [table.rows[1:] for table in self.tables if table.rows[0] == list(head)]
        return found

    def matrix(self, kind: str, modality: str = "") -> list[list[int]]:
        (found,) = [table.rows[1:] for table in self.tables if table.view == (kind, modality)]
        return [list(map(int, row[1:])) for row in found]


def split_of(samples: int, seed: int) -> Split:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (samples,), generator=random)
    audio = torch.eye(3)[target].repeat(1, 4) + 0.5 * torch.randn(samples, 12, generator=random)
    picture = target.view(-1, 1, 1, 1) / 2 + torch.randn(samples, 1, 4, 4, generator=random)
    return Split({"audio": audio, "image": picture}, target)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("report")
    tiny = MultimodalData("tiny", split_of(49, 0), split_of(30, 1), None, NAMES)
    datasets.save(tiny, path / "tiny.npz")
    return path


def config_of(place: Path, **changes) -> Config:
    base = {"dataset": str(place / "tiny.npz"), "width": 8, "epochs": 3, "batch_size": 16, "threads": 1}
    return Config(**{**base, "device": "cpu", "lr": 0.1, **changes})


@pytest.fixture(scope="module")
def run(place) -> Path:
    train(config_of(place), place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def page(run) -> Page:
    path, _ = write_report([run], samples=5)
    assert path == run / "report.html"
    return Page(path)


@pytest.fixture(scope="module")
def asked(run) -> SimpleNamespace:
    """The network asked directly: all inputs, and each with zeros in the place of the other."""
    network, test = load_run(run).network.eval(), datasets.load(run.parent / "tiny.npz").test
    zeros = {name: torch.zeros_like(values) for name, values in test.inputs.items()}
    with torch.no_grad():
        joint = network(**test.inputs)
        audio = network(**{**zeros, "audio": test.inputs["audio"]})
        picture = network(**{**zeros, "image": test.inputs["image"]})
    half = (joint - audio - picture) / 2
    return SimpleNamespace(
        target=test.target, joint=joint, alone=[audio, picture], responses=[audio + half, picture + half]
    )


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


@pytest.fixture
def quick(place):
    def report(dataset: Path, name: str, **changes):
        train(config_of(place, dataset=str(dataset), epochs=1, **changes), place / name)
        path, (section,) = write_report([place / name], samples=2)
        return Page(path), section

    return report


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


def test_a_comparison_has_its_paired_intervals(place, tmp_path, capsys):
    config, methods, fusions = config_of(place, epochs=1), ["joint", "agm(alpha=2)"], ["late", "early"]
    out = tmp_path / "compare"
    expected = compare_methods(config, methods, 2, out, fusions=fusions)
    write_csv(out / "compare.csv", expected, config.seed)
    write_settings(out / "compare.toml", config, methods, 2, fusions)
    assert main(["report", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    page = Page(out / "report.html")
    tables = [table.rows[1:] for table in page.tables if table.rows[0][-1] == "claim"]
    assert len(tables) == 4  # of each fusion the accuracies, and what else there is
    rows = [row for table in tables for row in table if len(row) > 1]
    for row, found in zip(rows, expected, strict=True):
        assert row[:3] == [found.method, spread(found), interval(found)]
        assert row[3] == (found.verdict if found.verdict in ("", "higher", "lower") else "none")
    (section,) = printed["sections"]
    values = [one["values"] for one in section["comparisons"] if one["metric"] == "accuracy"]
    assert values == [list(found.values) for found in expected if found.metric == "accuracy"]
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.source.count("over the epochs") > 4


def test_strengths_are_shown_where_they_were_measured(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    head = ("", "strength", "95 % interval")
    assert not [table for table in Page(write_report([folder])[0]).tables if table.rows[0] == list(head)]
    (folder / "strength.json").write_text('{"strength": {"audio": 0.25, "image": 0.5}}')
    page = Page(write_report([folder])[0])
    assert [row[:2] for row in page.table(*head)] == [["audio", "0.250"], ["image", "0.500"]]
    rows = [
        ["agm", epochs, name, value + epochs / 10, value, value + 1, 30, 3, 3, 1.0]
        for epochs in (0, 3)
        for name, value in (("audio", 0.1), ("image", 0.2))
    ]
    write_rows(folder / "competition.csv", COLUMNS, rows)
    page = Page(write_report([folder])[0])
    assert page.table(*head) == [["audio", "0.400", "[0.100, 1.100]"], ["image", "0.500", "[0.200, 1.200]"]]
    assert page.source.count("competition strength of") == 2


def test_a_measurement_of_competition_has_its_table_and_pictures(run, tmp_path):
    shutil.copy(run / "config.toml", tmp_path / "training.toml")
    (tmp_path / "competition.toml").touch()
    rows = [["apart", None, "audio", 0.1, 0.05, 0.2, 30, 3, 3, 1.0]]
    rows += [["joint", epochs, "audio", 0.5 + epochs, 0.4, 2.0, 30, 3, 3, 1.0] for epochs in (0, 1)]
    write_rows(tmp_path / "competition.csv", COLUMNS, rows)
    page = Page(write_report([tmp_path])[0])
    assert page.table("method", "audio") == [["apart", "0.100 [0.050, 0.200]"], ["joint", "1.500 [0.400, 2.000]"]]
    assert "trained apart" in page.text
    assert page.source.count("<svg") == 1


def test_several_runs_share_a_page(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(run), "--samples", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == "report.html"
    page = Page(tmp_path / "report.html")
    result = json.loads((run / "result.json").read_text())
    rows = page.table("run", "split", "joint, %", "audio response, %", "image response, %")
    assert [row[2] for row in rows] == [f"{100 * result['accuracy']:.1f}"] * 2
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    first = printed["sections"][0]
    assert first["figures"]["accuracy"] == result["accuracy"]
    assert first["confusions"]["joint"] == page_matrix(page)
    assert first["least_balanced"] == page.samples[:1]


def page_matrix(page: Page) -> list[list[int]]:
    first = next(table for table in page.tables if table.view == ("joint", ""))
    return [list(map(int, row[1:])) for row in first.rows[1:]]


def test_a_report_is_replaced_and_nothing_else(run, tmp_path):
    path, _ = write_report([run], tmp_path / "page.html", samples=0)
    assert Page(path).samples == []
    write_report([run], path, samples=1)
    assert len(Page(path).samples) == 2
    other = tmp_path / "thesis.html"
    other.write_text("<p>four years of work</p>")
    with pytest.raises(UserError, match="which is not replaced"):
        write_report([run], other)
    assert other.read_text() == "<p>four years of work</p>"
    with pytest.raises(UserError, match="got the folder"):
        write_report([run], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "but got nothing there"),
        (["."], "neither config.toml nor compare.csv"),
        (["--samples", "-1", "."], "--samples to be an integer >= 0"),
        ([], "Missing argument 'RUN...'"),
    ],
)
def test_mistakes_are_one_line(arguments, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_data_that_moved_are_found_where_they_are(place, tmp_path):
    (tmp_path / "tiny.npz").write_bytes((place / "tiny.npz").read_bytes())
    train(config_of(place, dataset=str(tmp_path / "tiny.npz"), epochs=1), tmp_path / "run")
    (tmp_path / "tiny.npz").rename(tmp_path / "moved.npz")
    with pytest.raises(UserError, match="say where they are now with --dataset"):
        write_report([tmp_path / "run"])
    path, _ = write_report([tmp_path / "run"], dataset=str(tmp_path / "moved.npz"))
    assert Page(path).matrix("joint")


def test_many_classes_have_a_picture_and_their_most_frequent_mistakes():
    random = torch.Generator().manual_seed(0)
    target, answers = torch.randint(30, (2, 900), generator=random)
    answers[:7] = -1
    view = View("joint", "", answers, torch.ones(900, dtype=torch.bool))
    predictions = Predictions("classes", target, (view,), torch.zeros(900, 1), None, None)
    (found,) = confusions(predictions, [f"c{place}" for place in range(30)])
    matrix = confusion_matrix(target[7:], answers[7:], labels=range(30))
    assert counted(target, answers, 30).tolist() == matrix.tolist()
    assert (found.unanswered, found.right, found.rows) == (7, matrix.trace(), ())
    wrong = matrix - np.diag(matrix.diagonal())
    assert [count for *_, count in found.pairs] == sorted(wrong.flatten().tolist(), reverse=True)[:15]
    assert all(wrong[int(truth[1:]), int(answer[1:])] == count for truth, answer, count in found.pairs)
    pixels = decoded(found.picture)
    assert pixels.shape == (30, 30, 4)
    assert np.allclose(pixels[..., 3] ** 2, matrix / np.bincount(target, minlength=30)[:, None], atol=0.01)


def decoded(source: str) -> np.ndarray:
    return image.imread(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))), format="png")


def test_a_sample_is_shown_as_what_it_is():
    text = torch.tensor([*"Käse & <b>".encode(), 0, 0], dtype=torch.uint8)
    assert medium("t", text).text == "Käse & <b>"
    assert medium("t", torch.tensor([5, 0, 7, 0])).text == "token ids 5 7"
    assert medium("t", torch.tensor([1.5, -2.0])).text == "1.5, -2"
    assert medium("t", torch.zeros(3), present=False).kind == "absent"
    picture = torch.rand(3, 5, 7)
    low, high = picture.min(), picture.max()
    expected = ((picture - low) / (high - low)).permute(1, 2, 0)
    assert np.allclose(decoded(medium("t", picture).source)[..., :3], expected, atol=1 / 254)
    assert decoded(medium("t", torch.rand(1, 400, 1000)).source).shape[:2] == (102, 256)
    assert decoded(medium("t", torch.rand(9, 3, 4, 4)).source).shape[:2] == (4, 16)  # four frames
    assert decoded(medium("t", torch.rand(20, 10)).source).shape[:2] == (10, 20)  # features by time
    assert decoded(medium("t", torch.zeros(1, 2, 2)).source).shape[:2] == (2, 2)  # that does not vary
    (wave,) = medium("t", torch.cat([torch.zeros(5000), torch.ones(1), torch.zeros(4999)])).curves
    heights = [float(point.split(",")[1]) for point in wave.split()]
    assert len(heights) <= 420
    assert (min(heights), max(heights)) == (2.0, 38.0)  # the single peak is not lost
    assert len(medium("t", torch.rand(50, 3)).curves) == 3
