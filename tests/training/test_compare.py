import csv
from dataclasses import replace

import pytest
from scipy import stats

from agm import data as datasets
from agm.data import Split
from agm.training import (
    UserError,
    compare_methods,
    concepts_of,
    load_run,
    strength_apart,
    strength_of,
    train,
    training_loop,
    unimodal_runs,
)
from agm.training.compare import Comparison, mean_interval, paired_comparisons, seconds_per_step
from agm.training.config import Config, read_config, read_table_of
from agm.training.exports import (
    command_line,
    interval,
    is_share,
    spread,
    title_of,
    write_csv,
    write_markdown,
    write_settings,
    write_wide_markdown,
)
from agm.training.plots import draw_comparison
from agm.training.run_folder import RunFolder, run_name

JOINT = [0.70, 0.72, 0.69, 0.71, 0.73]
AGM = [0.74, 0.75, 0.70, 0.77, 0.74]

pytestmark = pytest.mark.usefixtures("plain_pictures")


def figures(values, name="accuracy"):
    return [{name: value} for value in values]


def test_the_paired_difference_against_scipy():
    joint, modulated = paired_comparisons({"joint": figures(JOINT), "agm": figures(AGM)})
    mean, low, high = modulated.difference
    test = stats.ttest_rel(AGM, JOINT)
    interval = test.confidence_interval(0.95)
    assert mean == pytest.approx(0.03)
    assert (low, high) == pytest.approx((interval.low, interval.high))
    assert (test.pvalue < 0.05) == (modulated.verdict == "higher")
    assert joint.difference is None
    assert joint.verdict == ""


def test_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653."""
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    comparison = Comparison("accuracy", "agm", (1.0, 2.0, 3.0), None)
    assert (comparison.mean, comparison.deviation) == (2.0, 1.0)
    assert mean_interval([4.0]) == (4.0, None, None)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (AGM, "higher"),
        ([value - 0.05 + 0.001 * place for place, value in enumerate(JOINT)], "lower"),
        ([0.74, 0.68, 0.70, 0.75, 0.70], "no difference can be claimed"),
        (JOINT, "no difference can be claimed"),
    ],
)
def test_the_verdict_is_whether_the_interval_leaves_0_out(values, verdict):
    assert paired_comparisons({"joint": figures(JOINT), "agm": figures(values)})[1].verdict == verdict


def test_one_seed_claims_nothing():
    only = paired_comparisons({"joint": figures([0.1]), "agm": figures([0.9])})[1]
    assert only.verdict == "one seed: nothing can be claimed"
    assert only.deviation is None
    assert only.difference == (pytest.approx(0.8), None, None)


def test_a_figure_that_a_method_lacks_is_left_out():
    both = [{"accuracy": 0.5, "response_audio": 0.3}, {"accuracy": 0.6, "response_audio": 0.4}]
    one = [{"accuracy": 0.4}, {"accuracy": 0.5}]
    forth = paired_comparisons({"joint": both, "unimodal:image": one})
    assert [(c.metric, c.method) for c in forth] == [
        ("accuracy", "joint"),
        ("accuracy", "unimodal:image"),
        ("response_audio", "joint"),
    ]
    back = paired_comparisons({"unimodal:image": one, "joint": both})
    assert back[-1].metric == "response_audio"
    assert back[-1].difference is None


def test_a_seed_that_diverged_is_left_out_of_the_pairs(tmp_path):
    runs = {
        "joint": [*figures(JOINT[:3]), None, {"accuracy": 0.7}],
        "agm": [None, *figures(AGM[1:])],
        "ogm": [None] * 5,
    }
    joint, modulated, lost = paired_comparisons(runs)
    assert (joint.diverged, modulated.diverged, lost.diverged) == (1, 1, 5)
    assert modulated.mean == pytest.approx(sum(AGM[1:]) / 4)
    expected = mean_interval([AGM[1] - JOINT[1], AGM[2] - JOINT[2], AGM[4] - 0.7])
    assert modulated.difference == pytest.approx(expected)
    assert (lost.mean, lost.difference, lost.verdict) == (None, None, "diverged")
    assert (spread(modulated), spread(lost)) == ("74.0 ± 2.9 (1 diverged)", "diverged")
    write_csv(tmp_path / "c.csv", [joint, modulated, lost], 0)
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["seed_3"], rows[2]["mean"]) == ("", "")
    write_wide_markdown(tmp_path / "c.md", [joint, modulated, lost], "agm compare")
    assert "A run that diverged has no figures" in (tmp_path / "c.md").read_text()
    draw_comparison(tmp_path / "c.png", [joint, modulated, lost], "title")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_files(tmp_path):
    comparisons = paired_comparisons({"joint": figures(JOINT), "agm": figures(AGM)})
    write_csv(tmp_path / "c.csv", comparisons, first_seed=3)
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["joint", "agm"]
    assert [float(rows[1][f"seed_{seed}"]) for seed in range(3, 8)] == AGM
    assert float(rows[1]["low"]) == pytest.approx(comparisons[1].difference[1])
    assert rows[0]["difference"] == ""

    write_markdown(tmp_path / "c.md", comparisons, "agm compare --seeds 5")
    lines = (tmp_path / "c.md").read_text().splitlines()
    assert lines[2] == "| joint | joint | 71.0 ± 1.6 |  |  |"
    assert lines[3] == "| joint | agm | 74.0 ± 2.5 | +3.0 [+0.4, +5.6] | higher |"
    assert {line.count("|") for line in lines[:4]} == {6}
    assert "last epoch, test split" in lines[5]
    assert lines[7] == "    agm compare --seeds 5"


def test_the_command_names_what_is_not_default():
    assert command_line(Config(), ["joint", "agm"], 5) == "agm compare --methods joint,agm --seeds 5"
    text = command_line(Config(lr=0.1, clip_norm=1.0, dataset="my data.npz"), ["joint", "agm"], 2)
    assert text == ("agm compare --methods joint,agm --seeds 2 --dataset 'my data.npz' --lr 0.1 --clip-norm 1.0")


def test_runs_are_ordinary_and_finished_ones_are_not_repeated(settings, tmp_path, monkeypatch):
    config, methods = settings(epochs=2, seed=4), ["joint", "agm", "unimodal:image"]
    seen = []
    comparisons = compare_methods(config, methods, 2, tmp_path, finished=seen.append)
    names = {run_name(method, seed) for method in methods for seed in (4, 5)}
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == names
    assert "unimodal-image-seed5" in names
    for comparison in comparisons:
        if comparison.metric in ("step_seconds", "cost"):
            assert min(comparison.values) > 0
            continue
        runs = [RunFolder(tmp_path / run_name(comparison.method, seed)).read_result() for seed in (4, 5)]
        assert comparison.values == tuple(run[comparison.metric] for run in runs)
    assert [(result.config.method, result.config.seed) for result in seen][:4] == [
        *(("joint", 4), ("agm", 4), ("unimodal:image", 4), ("joint", 5))
    ]

    checkpoints = {name: (tmp_path / name / "checkpoint.pt").read_bytes() for name in names}
    (tmp_path / "agm-seed5" / "result.json").unlink()  # as if it had been interrupted at its very end
    assert compare_methods(config, methods, 2, tmp_path) == comparisons
    assert {name: (tmp_path / name / "checkpoint.pt").read_bytes() for name in names} == checkpoints
    with pytest.raises(UserError, match=r"joint-seed4.*lr \(0\.5, 0\.02\)"):
        compare_methods(settings(epochs=2, seed=4, lr=0.5), methods, 2, tmp_path)


def test_data_that_change_between_two_runs_are_noticed(settings, data, dataset, tmp_path):
    def spoil(result):
        changed = Split(data.train.inputs, data.train.target.roll(1))
        datasets.save(replace(data, train=changed), dataset)

    with pytest.raises(UserError, match=r"contents changed meanwhile.*--out"):
        compare_methods(settings(epochs=1), ["joint", "agm"], 1, tmp_path / "out", finished=spoil)


def test_a_mistake_shows_before_the_first_run(settings, tmp_path):
    for methods, seeds, message in [
        (["joint"], 2, "two or more different"),
        (["joint", "joint"], 2, "two or more different"),
        (["joint", "amg"], 2, "joint, agm, .*unimodal:NAME"),
        (["joint", "unimodal:text"], 2, "audio, image"),
        (["joint", "agm"], 0, "--seeds"),
    ]:
        with pytest.raises(UserError, match=message):
            compare_methods(settings(), methods, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


METHODS = ["joint", "agm(alpha=0.5,masked=exact)", "agm(alpha=2)", "mslr(initial={audio=0.5,image=1.5})"]


def test_fusions_variants_and_cost(settings, tmp_path):
    config = settings(epochs=1, validation=0.3)
    found = compare_methods(config, METHODS, 2, tmp_path, fusions=["late", "early"])
    assert {(c.fusion, c.method) for c in found} == {(f, m) for f in ("late", "early") for m in METHODS}
    for fusion in ("late", "early"):
        names = {path.name for path in (tmp_path / fusion).iterdir()}
        assert names == {run_name(method, seed) for method in METHODS for seed in (0, 1)}
        own = [c for c in found if c.fusion == fusion]
        accuracy = {c.method: c for c in own if c.metric == "accuracy"}
        for method in METHODS:
            runs = [RunFolder(tmp_path / fusion / run_name(method, seed)).read_result() for seed in (0, 1)]
            assert accuracy[method].values == tuple(run["accuracy"] for run in runs)
        joint = accuracy["joint"].values
        paired = mean_interval([a - b for a, b in zip(accuracy[METHODS[2]].values, joint, strict=True)])
        assert accuracy[METHODS[2]].difference == paired
        figures = {(c.metric, c.method): c.values for c in own}
        seconds = [figures["step_seconds", method] for method in (METHODS[1], "joint")]
        assert figures["cost", METHODS[1]] == tuple(a / b for a, b in zip(*seconds, strict=True))
        assert figures["cost", "joint"] == (1.0, 1.0)
    configs = [read_config(tmp_path / "late" / run_name(method, 1) / "config.toml") for method in METHODS]
    assert [(c.method, c.alpha, c.masked) for c in configs[1:3]] == [("agm", 0.5, "exact"), ("agm", 2.0, "shared")]
    assert configs[3].options == {"initial": {"audio": 0.5, "image": 1.5}}

    write_wide_markdown(tmp_path / "c.md", found, "agm compare")
    lines = (tmp_path / "c.md").read_text().splitlines()
    assert lines[:2] == ["**late**", ""]
    assert "**early**" in lines
    assert lines[2].startswith("| test split, accuracies in % | joint | audio response |")
    assert "| joint without image | macro-F1 | epochs in all | ms a step | cost of a step |" in lines[2]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert [line.split(" | ")[0] for line in lines[4:8]] == [f"| {method}" for method in METHODS]
    assert "did not take turns" in lines[-3]


def test_the_strength_of_every_run_against_networks_of_one_modality(settings, tmp_path, monkeypatch):
    config = settings(epochs=1, validation=0.4, seed=3)
    methods = ["joint", "agm", "alone:image"]
    found = compare_methods(config, methods, 2, tmp_path, strength=True)
    divided = datasets.load(tmp_path / "data.npz")
    assert [len(split) for split in divided.splits.values()] == [29, 20, 30]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        *(f"{method}-seed{seed}" for method in ("joint", "agm") for seed in (3, 4)),
        *(f"alone-{name}-seed{seed}" for name in ("audio", "image") for seed in (3, 4, 5)),
    }
    network = {path.name: load_run(path).network for path in tmp_path.iterdir() if path.is_dir()}
    figures = {(c.metric, c.method): c.values for c in found}
    for place, seed in enumerate((3, 4)):
        splits = divided.validation, divided.test
        own, others = (
            {name: network[f"alone-{name}-seed{s}"] for name in divided.modalities} for s in (seed, seed + 1)
        )
        concepts = concepts_of(others, *splits)
        expected = {"apart": strength_apart(own, *splits, concepts)}
        for method in ("joint", "agm"):
            expected[method] = strength_of(network[f"{method}-seed{seed}"], *splits, concepts)
        for method, strengths in expected.items():
            for name, strength in strengths.items():
                assert figures[f"strength_{name}", method][place] == pytest.approx(strength.value, rel=1e-6)
        accuracy = RunFolder(tmp_path / f"alone-audio-seed{seed}").read_result()["accuracy"]
        assert figures["response_audio", "apart"][place] == accuracy
    assert ("strength_image", "alone:image") not in figures
    write_markdown(tmp_path / "c.md", found, "agm compare")
    text = (tmp_path / "c.md").read_text()
    assert "| image competition strength | apart |" in text
    assert "without competition" in text

    # What was measured is not measured again, but for concepts that are others.
    monkeypatch.setattr(unimodal_runs, "strength_of", None)
    assert compare_methods(config, methods, 2, tmp_path, strength=True) == found
    kept = tmp_path / "agm-seed4" / "strength.json"
    kept.write_text(kept.read_text().replace("alone-audio-seed5", "alone-audio-seed9"))
    with pytest.raises(TypeError):
        compare_methods(config, methods, 2, tmp_path, strength=True)


def test_a_strength_needs_samples_that_nobody_was_trained_on(settings, tmp_path):
    with pytest.raises(UserError, match=r"validation split to measure the competition strength.*--validation 0.2"):
        compare_methods(settings(epochs=1), ["joint", "agm"], 1, tmp_path / "out", strength=True)
    assert not (tmp_path / "out").exists()


def test_seconds_of_a_step_are_the_median_and_a_share_of_what_is_between(settings, tmp_path):
    result = train(settings(epochs=1), tmp_path / "run")
    rows = [
        {"step": 4 * (epoch + 1), "step_seconds": seconds, "between_seconds": 1.2}
        for epoch, seconds in enumerate([9.0, 0.2, 0.1])
    ]
    assert seconds_per_step(replace(result, history=rows)) == pytest.approx(0.2 + 3.6 / 12)
    assert seconds_per_step(replace(result, history=[*rows, {"step": 16}])) is None


def test_runs_in_other_processes_are_the_same(settings, tmp_path):
    config, methods = settings(epochs=1), ["joint", "ogm-ge", "joint(lr=1e30)"]
    alone = compare_methods(config, methods, 1, tmp_path / "alone")
    seen = []
    together = compare_methods(config, methods, 1, tmp_path / "together", jobs=2, finished=seen.append)
    values = [{(c.metric, c.method): c.values for c in found if is_share(c.metric)} for found in (alone, together)]
    assert repr(values[0]) == repr(values[1])  # NaN where a run diverged
    assert [c.diverged for c in together if c.metric == "accuracy"] == [0, 0, 1]
    assert [result.config.method for result in seen] == methods[:2]


def test_a_run_that_diverges_does_not_end_the_others(settings, tmp_path):
    methods, told = ["joint", "joint(lr=1e30)", "agm"], []

    class Told(training_loop.Observer):
        def diverged(self, error):
            told.append(str(error))

    def compared():
        folder = tmp_path / "compare"
        return compare_methods(settings(epochs=2), methods, 1, folder, lambda method, seed: Told())

    found = {c.method: c for c in compared() if c.metric == "accuracy"}
    assert list(found) == ["joint", "joint(lr=1e30)", "agm"]
    assert [c.diverged for c in found.values()] == [0, 1, 0]
    assert [c.mean is None for c in found.values()] == [False, True, False]
    assert len(told) == 1
    assert "diverged in epoch 1" in told[0]
    again = {c.method: c for c in compared() if c.metric == "accuracy"}
    assert again["agm"] == found["agm"]
    assert len(told) == 2


def test_a_strength_needs_its_networks_of_one_modality(settings, tmp_path):
    config = settings(epochs=1, validation=0.3, lr=1e30)
    with pytest.raises(UserError, match=r"strength is measured with them.*diverged"):
        compare_methods(config, ["joint", "agm"], 1, tmp_path / "compare", strength=True)


def test_how_figures_are_written():
    def shown(metric):
        comparison = Comparison(metric, "agm", (0.0123, 0.0125), (0.0011, -0.0002, 0.0024))
        return title_of(metric), spread(comparison), interval(comparison)

    assert shown("accuracy") == ("joint", "1.2 ± 0.0", "+0.1 [-0.0, +0.2]")
    assert shown("absent_audio")[0] == "joint without audio"
    assert shown("strength_audio") == ("audio competition strength", "0.012 ± 0.000", "+0.001 [-0.000, +0.002]")
    assert shown("step_seconds") == ("ms a step", "12.4 ± 0.1", "+1.1 [-0.2, +2.4]")
    assert shown("cost") == ("cost of a step", "0.01 ± 0.00", "+0.00 [-0.00, +0.00]")


def test_the_file_of_a_comparison_holds_its_settings(settings, tmp_path):
    config = settings(alpha=0.7, options={})
    write_settings(tmp_path / "compare.toml", config, METHODS, 3, ["late", "early"])
    assert read_table_of(tmp_path / "compare.toml", "compare") == {
        "methods": METHODS,
        "fusion": ["late", "early"],
        "seeds": 3,
        "strength": False,
    }
    assert read_config(tmp_path / "compare.toml") == replace(config, fusion="late")


def test_figures_of_labels_and_numbers_have_names():
    names = {
        "micro_f1": "micro-F1",
        "macro_f1": "macro-F1",
        "mae": "mean absolute error",
        "response_a_b": "a_b response",
    }
    assert {metric: title_of(metric) for metric in names} == names
