import math
import subprocess
import sys

import numpy as np
import pytest

from agm.training import plots, train
from agm.training.compare import paired_comparisons
from agm.training.run_folder import read_table

pytest.importorskip("matplotlib")


def drawn(axes, width: float) -> list[np.ndarray]:
    """Heights of the lines of one width, in the order in which they were drawn."""
    return [np.asarray(line.get_ydata(), float) for line in axes.lines if line.get_linewidth() == width]


@pytest.fixture
def run(settings, tmp_path):
    train(settings(epochs=4), tmp_path / "run")
    return tmp_path / "run"


def test_a_modulated_run_has_six_labelled_panels_with_its_numbers(run):
    metrics, steps = read_table(run / "metrics.csv"), read_table(run / "steps.csv")
    figure = plots.training_figure(metrics, steps, "a title")
    loss, accuracy, absent, scores, ratios, coefficients = figure.axes
    assert all(axes.get_title(loc="left") and axes.lines for axes in figure.axes)
    assert {axes.get_xlabel() for axes in (scores, ratios, coefficients)} == {"step"}
    assert figure.get_suptitle() == "a title"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["joint", "audio", "image"]

    assert np.allclose(drawn(loss, 1.5)[1], [row["loss"] for row in metrics])
    assert np.allclose(drawn(loss, 0.6)[0], [row["loss"] for row in steps])
    for axes, columns in [
        (accuracy, ["response_audio", "response_image", "accuracy"]),
        (absent, ["absent_audio", "absent_image", "accuracy"]),
    ]:
        for line, column in zip(drawn(axes, 1.5), columns, strict=True):
            assert np.allclose(line, [100 * row[column] for row in metrics])
        assert axes.get_ylim() == (0, 100)
    for axes, kind in [(scores, "score"), (ratios, "ratio"), (coefficients, "coefficient")]:
        for line, name in zip(drawn(axes, 0.6), ["audio", "image"], strict=True):
            assert np.allclose(line, [row[f"{kind}_{name}"] for row in steps])
    assert {ratios.get_yscale(), coefficients.get_yscale()} == {"log"}
    assert np.allclose(drawn(ratios, 1.5)[1], [row["reference_ratio_audio"] for row in steps])


def test_a_modality_has_one_colour_in_every_panel(run):
    figure = plots.training_figure(read_table(run / "metrics.csv"), read_table(run / "steps.csv"), "")
    for axes in figure.axes[1:]:
        colours = {line.get_color() for line in axes.lines} - {plots.JOINT, "#777777"}
        assert colours == set(plots.COLOURS[:2])


@pytest.mark.parametrize(("method", "panels"), [("joint", 3), ("unimodal:image", 2)])
def test_a_run_without_modulation_has_no_empty_panels(settings, tmp_path, method, panels):
    train(settings(method=method), tmp_path / "run")
    metrics, steps = (read_table(tmp_path / "run" / name) for name in ("metrics.csv", "steps.csv"))
    figure = plots.training_figure(metrics, steps, "")
    assert len(figure.axes) == panels
    assert all(axes.lines for axes in figure.axes)


@pytest.mark.parametrize(
    ("method", "titles"),
    [
        ("igm", []),
        ("mla", ["score of each modality"]),
        ("ogm", ["ratio", "modulation coefficient"]),
        ("amgb", ["score of each modality", "ratio", "modulation coefficient"]),
    ],
)
def test_whatever_a_strategy_tells_of_its_steps_has_a_panel(settings, tmp_path, method, titles):
    train(settings(method=method, fusion="late"), tmp_path / "run")
    metrics, steps = (read_table(tmp_path / "run" / name) for name in ("metrics.csv", "steps.csv"))
    shown = [axes for axes in plots.training_figure(metrics, steps, "").axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown[3:]] == titles
    assert all(axes.lines for axes in shown)


def test_the_picture_decodes_and_shows_something(run):
    from matplotlib import image

    path = plots.draw_run(run, "title")
    pixels = image.imread(path)[..., :3]
    assert pixels.shape[1] > 1200
    assert pixels.shape[0] > 600
    assert 0.02 < (pixels.min(-1) < 0.95).mean() < 0.4


def test_a_window_leaves_a_gap_and_not_a_zero(settings, tmp_path):
    train(settings(start=1, stop=2), tmp_path / "run")
    metrics, steps = (read_table(tmp_path / "run" / name) for name in ("metrics.csv", "steps.csv"))
    scores = plots.training_figure(metrics, steps, "").axes[3]
    for line in scores.lines:
        assert np.isfinite(line.get_ydata()).tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_running_mean():
    assert np.allclose(plots._running_mean(np.array([1.0, 2, 3, 4, 5]), 3), [1.5, 2, 3, 4, 4.5])
    assert np.allclose(plots._running_mean(np.array([1.0, np.nan, 3]), 3), [1, np.nan, 3], equal_nan=True)


def test_a_comparison_has_a_dot_a_seed_and_the_mean(settings):
    values = {
        "joint": [{"accuracy": 0.70, "response_audio": 0.40, "absent_audio": 0.5}] * 3,
        "agm": [{"accuracy": 0.6 + seed / 10, "response_audio": 0.6, "absent_audio": 0.5} for seed in range(3)],
        "unimodal:audio": [{"accuracy": 0.5, "response_audio": 0.5}] * 3,
    }
    figure = plots.comparison_figure(paired_comparisons(values), "title")
    joint, audio = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["joint", "audio response"]
    assert [tick.get_text() for tick in joint.get_xticklabels()] == ["joint", "agm", "unimodal\naudio"]
    dots = [points.get_offsets()[:, 1] for points in joint.collections if len(points.get_offsets()) == 3]
    assert np.allclose(dots[1], [60, 70, 80])
    assert [text.get_text() for text in joint.texts] == ["70.0", "70.0", "50.0"]
    assert [text.get_text() for text in audio.texts] == ["40.0", "60.0", "50.0"]


def test_the_command_line_loads_neither_matplotlib_nor_scipy():
    program = "import sys, agm.training.cli; print([m for m in ('matplotlib', 'scipy', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_on_numbers_shows_what_is_below_zero_by_its_name():
    shares = {"response_a": -0.4, "response_b": 0.1, "absent_a": 0.1, "absent_b": -0.3, "accuracy": -0.2}
    row = {"epoch": 1, "step": 1, "split": "test", "train_loss": 2.0, "loss": 2.5, **shares, "mae": 1.0}
    scores = {f"{kind}_{name}": -0.5 for kind in ("score", "reference_ratio") for name in ("a", "b")}
    steps = [{"step": 1, "epoch": 1, "loss": 2.0, **scores}]
    loss, share, absent, score = (axes for axes in plots.training_figure([row], steps, "").axes if axes.get_visible())
    assert loss.get_ylabel() == "error"
    assert share.get_title(loc="left") == "test R²: joint, each response"
    assert share.get_ylim()[0] == pytest.approx(-44)
    assert absent.get_ylim()[0] == pytest.approx(-33)
    assert score.get_ylabel() == "logarithm of the error"
    assert score.get_ylim()[0] < -0.5


def test_figures_that_are_not_finite_or_below_zero():
    """As of training on numbers that goes far off: the run ended, and has a picture."""
    row = {"epoch": 1, "step": 1, "split": "test", "train_loss": 1e12, "loss": math.inf, "accuracy": -1e44}
    figure = plots.training_figure([row], [{"step": 1, "epoch": 1, "loss": 1e12}], "run")
    assert figure.axes[0].get_ylim() == pytest.approx((0, 1.1e12))
    values = {name: [{"accuracy": value - 0.01 * seed} for seed in range(3)] for name, value in (("a", -3), ("b", -2))}
    low, high = plots.comparison_figure(paired_comparisons(values), "title").axes[0].get_ylim()
    assert low < -300 < high
