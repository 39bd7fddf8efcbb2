"""What the command writes, and what it refuses; samples are shown as what they are."""

import base64
import io

import numpy as np
import pytest
import torch
from matplotlib import image
from sklearn.metrics import confusion_matrix

from agm.training import UserError, train
from agm.training.__main__ import main
from agm.training.report import write_report
from agm.training.report.confusions import confusion_matrix as counted
from agm.training.report.confusions import confusions
from agm.training.report.media import medium
from agm.training.report.predictions import Predictions, View

from .page import Page, config_of


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
