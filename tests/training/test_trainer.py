import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

import agm
from agm import data as datasets
from agm import models
from agm.data import MultimodalData, Split
from agm.training import Config, schedule, train, training_loop
from agm.training.config import read_config
from agm.training.observer import Observer
from agm.training.run_folder import read_table

from .stopping import Stop, StopAt

METHODS = ["agm", "joint", "unimodal:image"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, in what is no tensor too; scores of a step that was not modulated are NaN alike."""
    assert list(left) == list(right)
    pairs = [pytree.tree_leaves(dict(sorted(state.items()))) for state in (left, right)]
    if [type(leaf) for leaf in pairs[0]] != [type(leaf) for leaf in pairs[1]]:
        return False
    return all(
        torch.equal(one.nan_to_num(), other.nan_to_num()) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(*pairs, strict=True)
    )


def by_hand(config: Config, data: MultimodalData, epochs: int, clip: float | None = None) -> torch.nn.Module:
    """The loop that a user would write."""
    torch.manual_seed(config.seed)
    network = models.build(config.fusion, {"audio": (6,), "image": (1, 4, 4)}, 3, width=config.width)
    model = network
    if config.method == "agm":
        model = agm.AGM(network, alpha=config.alpha, max_gap=config.max_gap, masked=config.masked)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    for epoch in range(epochs):
        for index in training_loop.batches(len(data.train), config.batch_size, config.seed, epoch):
            inputs = {name: values[index] for name, values in data.train.inputs.items()}
            target = {"target": data.train.target[index]} if config.method == "agm" else {}
            optimizer.zero_grad()
            F.cross_entropy(model(**inputs, **target), data.train.target[index]).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        schedule.step()
    return model


def test_batches_hold_every_sample_once_in_an_order_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(training_loop.batches(49, 16, seed, epoch)).tolist()

    assert sorted(order(0, 0)) == list(range(49))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


@pytest.mark.parametrize(
    ("samples", "sizes"), [(48, [16, 16, 16]), (49, [13, 12, 12, 12]), (50, [13, 13, 12, 12]), (9, [9]), (17, [9, 8])]
)
def test_batches_are_of_equal_size_but_for_one_sample(samples, sizes):
    assert [len(batch) for batch in training_loop.batches(samples, 16, 0, 0)] == sizes


def test_no_batch_is_a_single_sample():
    for samples in range(2, 40):
        for batch_size in range(2, 9):
            sizes = [len(batch) for batch in training_loop.batches(samples, batch_size, 0, 0)]
            assert sum(sizes) == samples
            assert min(sizes) >= 2
            assert max(sizes) <= max(batch_size, 3)


def test_learning_rates():
    def rates(**changes) -> list[float]:
        config = Config(lr=0.8, epochs=4, **changes)
        return [schedule.learning_rate(config, epoch) for epoch in range(4)]

    assert rates(schedule="constant") == [0.8] * 4
    assert rates(schedule="step", step_epochs=2, step_factor=0.5) == [0.8, 0.8, 0.4, 0.4]
    half = math.sqrt(0.5)
    assert rates(schedule="cosine") == pytest.approx([0.8, 0.4 * (1 + half), 0.4, 0.4 * (1 - half)])


@pytest.mark.parametrize("method", ["agm", "joint"])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_trainer_does_what_a_loop_by_hand_does(settings, data, tmp_path, method, clip):
    config = settings(method=method, clip_norm=clip, seed=3)
    train(config, tmp_path / "run")
    model = by_hand(config, data, 3, clip)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=1e-4, atol=1e-6)


def test_alpha_0_is_joint_training(settings, tmp_path):
    modulated = train(settings(method="agm", alpha=0.0), tmp_path / "agm")
    joint = train(settings(method="joint"), tmp_path / "joint")
    for name, value in joint.network.state_dict().items():
        torch.testing.assert_close(modulated.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    stronger = train(settings(method="agm", alpha=20.0), tmp_path / "stronger")
    left, right = (next(result.network.parameters()) for result in (stronger, joint))
    assert (left - right).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_run_repeats_from_its_config_file_bit_for_bit(settings, tmp_path, method):
    train(settings(method=method, masked="exact"), tmp_path / "one")
    again = read_config(tmp_path / "one" / "config.toml")
    train(again, tmp_path / "two")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert (tmp_path / "one" / "steps.csv").read_text() == (tmp_path / "two" / "steps.csv").read_text()
    train(replace(again, seed=1), tmp_path / "three")
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "three"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "where", [{"epoch": 1}, {"step": 6}, {"step": 1}], ids=["between-epochs", "inside-an-epoch", "first-step"]
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(settings, tmp_path, method, where):
    config = settings(method=method)
    train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", observer=StopAt(**where))
    torch.manual_seed(999)  # another process would begin with other generators
    train(config, tmp_path / "parts", resume=True)

    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert same(whole["model"], parts["model"])
    for key, slots in whole["optimizer"]["state"].items():
        assert torch.equal(slots["momentum_buffer"], parts["optimizer"]["state"][key]["momentum_buffer"])
    assert torch.equal(whole["random"]["cpu"], parts["random"]["cpu"])
    assert (tmp_path / "whole/steps.csv").read_text() == (tmp_path / "parts/steps.csv").read_text()
    assert (tmp_path / "whole/result.json").read_text() == (tmp_path / "parts/result.json").read_text()
    rows = [read_table(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    rows = [[{k: v for k, v in row.items() if not k.endswith("seconds")} for row in table] for table in rows]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


def test_rows_behind_the_checkpoint_are_cut(settings, tmp_path, monkeypatch):
    """The process ends after the rows of epoch 2 were written and before its checkpoint was."""
    config = settings()
    train(config, tmp_path / "whole")
    save, calls = training_loop.save_checkpoint, []

    def failing(path, contents):
        calls.append(contents["epoch"])
        if contents["epoch"] == 2:
            raise Stop
        save(path, contents)

    monkeypatch.setattr(training_loop, "save_checkpoint", failing)
    with pytest.raises(Stop):
        train(config, tmp_path / "parts")
    assert [row["epoch"] for row in read_table(tmp_path / "parts/metrics.csv")] == [1, 2]
    monkeypatch.undo()
    train(config, tmp_path / "parts", resume=True)
    assert [row["epoch"] for row in read_table(tmp_path / "parts/metrics.csv")] == [1, 2, 3]
    assert (tmp_path / "whole/steps.csv").read_text() == (tmp_path / "parts/steps.csv").read_text()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_resuming_a_finished_run_trains_nothing(settings, tmp_path):
    first = train(settings(), tmp_path / "run")
    checkpoint = (tmp_path / "run/checkpoint.pt").read_bytes()
    second = train(settings(), tmp_path / "run", resume=True, observer=StopAt(step=1))
    assert second.evaluation == first.evaluation
    assert second.history == first.history
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == checkpoint


def test_metrics_against_the_checkpoint_and_the_steps(settings, data, tmp_path):
    result = train(settings(), tmp_path / "run")
    rows = read_table(tmp_path / "run/metrics.csv")
    steps = read_table(tmp_path / "run/steps.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert {row["split"] for row in rows} == {"test"}

    network = models.build("early", {"audio": (6,), "image": (1, 4, 4)}, 3, width=8)
    network.load_state_dict(
        {
            name.removeprefix("module."): value
            for name, value in weights(tmp_path / "run").items()
            if name.startswith("module.")
        }
    )
    network.eval()
    audio, image, target = data.test.inputs["audio"], data.test.inputs["image"], data.test.target
    with torch.no_grad():
        both = network(audio=audio, image=image)
        only_audio = network(audio=audio, image=torch.zeros_like(image))
        only_image = network(audio=torch.zeros_like(audio), image=image)
    last = rows[-1]
    expected = {
        "accuracy": both,
        "response_audio": both - only_image + only_audio,
        "response_image": both - only_audio + only_image,
        "absent_audio": only_image,
        "absent_image": only_audio,
    }
    for column, logits in expected.items():
        assert last[column] == pytest.approx((logits.argmax(-1) == target).double().mean().item()), column
        assert result.evaluation.columns()[column] == last[column]
    assert last["loss"] == pytest.approx(F.cross_entropy(both, target).item(), rel=1e-5)

    assert [row["step"] for row in steps] == list(range(1, 13))
    for row in rows:
        own = [step for step in steps if step["epoch"] == row["epoch"]]
        sizes = [13, 12, 12, 12]
        mean_loss = sum(size * step["loss"] for size, step in zip(sizes, own, strict=True)) / 49
        assert row["train_loss"] == pytest.approx(mean_loss)
        for column in ("score_audio", "ratio_image", "coefficient_audio", "coefficient_image"):
            assert row[column] == pytest.approx(sum(step[column] for step in own) / 4)


def test_steps_hold_the_formulas_of_the_method(settings, tmp_path):
    train(settings(alpha=1.5, max_gap=0.05), tmp_path / "run")
    running = [0.0, 0.0]
    for row in read_table(tmp_path / "run/steps.csv"):
        a, b = row["score_audio"], row["score_image"]
        assert row["ratio_audio"] == pytest.approx(math.exp(b - a))
        assert row["ratio_image"] == pytest.approx(math.exp(a - b))
        assert row["reference_ratio_audio"] == pytest.approx(math.exp(running[1] - running[0]))
        gap = min(row["reference_ratio_audio"] - row["ratio_audio"], 0.05)
        assert row["coefficient_audio"] == pytest.approx(math.exp(1.5 * gap))
        t = row["step"]
        running = [old * (t - 1) / t + new / t for old, new in zip(running, (a, b), strict=True)]


def test_only_the_window_is_modulated(settings, tmp_path):
    result = train(settings(start=1, stop=2), tmp_path / "run")
    assert ["coefficient_audio" in row for row in result.history] == [False, True, False]
    for row in read_table(tmp_path / "run/steps.csv"):
        assert (row["coefficient_audio"] is not None) == (row["epoch"] == 2)
    with pytest.raises(Stop):
        train(settings(method="joint"), tmp_path / "joint", observer=StopAt(epoch=1))
    with pytest.raises(Stop):
        train(settings(start=1, stop=2), tmp_path / "agm", observer=StopAt(epoch=1))
    joint, before = weights(tmp_path / "joint"), weights(tmp_path / "agm")
    assert all(torch.equal(value, before[f"module.{name}"]) for name, value in joint.items())


def test_a_validation_split_is_watched_and_the_test_split_reported(settings, data, tmp_path):
    """The test labels are wrong on purpose, so that the two splits cannot be mistaken for each other."""
    wrong = Split(data.train.inputs, (data.train.target + 1) % 3)
    other = replace(data, test=wrong, validation=data.train)
    datasets.save(other, tmp_path / "three.npz")
    config = settings(dataset=str(tmp_path / "three.npz"), method="joint", epochs=12, lr=0.05)
    result = train(config, tmp_path / "run")
    assert {row["split"] for row in result.history} == {"validation"}
    assert result.history[-1]["accuracy"] > 0.8
    assert result.evaluation.accuracy < 0.2


def test_torch_is_left_as_it_was(settings, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    torch.set_num_threads(2)
    train(settings(epochs=1), tmp_path / "run")
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.rand(3), expected)


def test_data_that_may_be_meant_otherwise_are_told_once_and_trained_on(settings, data, tmp_path):
    class Told(Observer):
        def __init__(self):
            self.doubts = []

        def doubted(self, doubt):
            self.doubts.append(doubt)

    def told(name, change, target=0, **more):
        splits = {}
        for part, split in data.splits.items():
            splits[part] = Split({n: change(n, x) for n, x in split.inputs.items()}, split.target + target)
        names = tuple("abcd"[: 3 + target])
        datasets.save(replace(data, **splits, class_names=names), tmp_path / f"{name}.npz")
        observer = Told()
        train(settings(dataset=str(tmp_path / f"{name}.npz"), epochs=1), tmp_path / f"run-{name}", observer=observer)
        again = Told()
        train(
            settings(dataset=str(tmp_path / f"{name}.npz"), epochs=1),
            tmp_path / f"run-{name}",
            observer=again,
            resume=True,
        )
        assert not again.doubts
        return observer.doubts

    assert told("plain", lambda n, x: x) == []
    assert told("rgb", lambda n, x: x.expand(-1, 3, 4, 4) if n == "image" else x) == []
    (empty,) = told("from-1", lambda n, x: x, target=1)
    assert empty.startswith("1 of 4 classes has no sample in the training split: a. ")
    (order,) = told("channels-last", lambda n, x: x[..., :3].expand(-1, 12, 4, 3) if n == "image" else x)
    assert order == "'image' is read as 12 channels of 4 x 3. If its channels are last, store (3, 12, 4) a sample."
    (scale,) = told("bytes", lambda n, x: 100 + 20 * x.clamp(-1, 1) if n == "audio" else x)
    assert scale.startswith("'audio' has values of about 1")
