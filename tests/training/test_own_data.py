"""Data as users have them: lacking modalities, unscaled, a number a sample."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import agm
from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training import UserError, evaluate, load_run, measure_contributions, train
from agm.training.doubts import doubts
from agm.training.methods import build_method
from agm.training.samples import fingerprint, hold_out, load_data
from agm.training.standardizing import standardized


@pytest.fixture
def lacking(data, tmp_path):
    """The dataset without a third of its sounds and a third of its images, and its path."""
    splits = {}
    for number, (name, split) in enumerate(data.splits.items()):
        random = torch.Generator().manual_seed(number)
        which = torch.randint(3, (len(split),), generator=random)
        splits[name] = Split(split.inputs, split.target, torch.stack([which != 0, which != 1], 1))
    made = MultimodalData("lacking", splits["train"], splits["test"], None, data.class_names)
    return made, str(datasets.save(made, tmp_path / "lacking.npz"))


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_agm_is_told_which_samples_lack_what(lacking, settings, tmp_path, masked):
    """The first step by hand, with `present`, gives the loss that the run has."""
    made, path = lacking
    config = settings(dataset=path, method="agm", masked=masked, epochs=1, batch_size=64, fusion="late")
    result = train(config, tmp_path / "run")
    torch.manual_seed(config.seed)
    method = build_method(config, {name: tuple(x.shape[1:]) for name, x in made.train.inputs.items()}, 3)
    model = agm.AGM(method.network, modalities=made.modalities, alpha=config.alpha, masked=masked)
    logits = model(**made.train.inputs, present=made.train.present, target=made.train.target)
    loss = F.cross_entropy(logits, made.train.target)
    assert result.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    # All scores, which other samples than these would change.
    loss.backward()
    for name in made.modalities:
        place = made.modalities.index(name)
        score = float(model.modulator.state.scores[place])
        assert result.history[0][f"score_{name}"] == pytest.approx(score, rel=1e-4)
    assert load_run(tmp_path / "run").evaluation == result.evaluation
    found = measure_contributions(result)
    again = agm.contributions(
        result.network, [(made.test.inputs, made.test.target)], made.modalities, present=made.test.present
    )
    assert found.contributions == pytest.approx(again.contributions)


def test_figures_count_a_modality_where_it_is_there(lacking, settings):
    made, path = lacking
    method = build_method(settings(dataset=path, method="joint"), {"audio": (6,), "image": (1, 4, 4)}, 3)
    network, split = method.network.eval(), made.test
    figures = evaluate(network, split, made.modalities, batch_size=7)
    with torch.no_grad():
        joint = network(**split.inputs)
        alone = {
            name: network(**{n: x if n == name else torch.zeros_like(x) for n, x in split.inputs.items()})
            for name in made.modalities
        }
    assert figures.accuracy == pytest.approx((joint.argmax(1) == split.target).double().mean().item())
    for place, name in enumerate(made.modalities):
        having, other = split.present[:, place], alone[made.modalities[1 - place]]
        both = split.present.all(1)
        # Of a sample that has both the response is (f - f(other) + f(this)) / 2; of one that has this alone, f.
        response = torch.where(both[:, None], (joint - other + alone[name]) / 2, joint)
        right = (response.argmax(1) == split.target)[having].double().mean().item()
        assert figures.responses[name] == pytest.approx(right)


def test_joint_training_sees_zeros(lacking, settings, tmp_path):
    """The same as a dataset whose values there are zeros, of which nobody says that they are lacking."""
    made, path = lacking
    zeros = {name: Split(split.inputs, split.target) for name, split in made.splits.items()}
    other = datasets.save(
        MultimodalData("z", zeros["train"], zeros["test"], None, made.class_names), tmp_path / "z.npz"
    )
    one = train(settings(dataset=path, method="joint"), tmp_path / "one")
    two = train(settings(dataset=str(other), method="joint"), tmp_path / "two")
    assert [row["train_loss"] for row in one.history] == [row["train_loss"] for row in two.history]
    assert one.evaluation.accuracy == two.evaluation.accuracy


@pytest.mark.parametrize("method", ["ogm", "mlb", "unimodal:audio", "alone:image"])
def test_other_methods_are_refused(lacking, settings, tmp_path, method):
    with pytest.raises(UserError, match=f"every modality for method '{method}'.*one of joint, agm, or leave"):
        train(settings(dataset=lacking[1], method=method, fusion="late"), tmp_path / "run")


def test_a_held_out_share_keeps_what_is_known(lacking, settings):
    made, path = lacking
    divided = hold_out(made, settings(dataset=path, validation=0.3))
    counts = [made.train.present.sum(), divided.train.present.sum() + divided.validation.present.sum()]
    assert counts[0] == counts[1]
    other = MultimodalData("x", Split(made.train.inputs, made.train.target), made.test, None, made.class_names)
    assert fingerprint(other) != fingerprint(made)


def test_scaled_by_the_training_split(settings, tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "table": random.normal(100, [1, 50, 0], size=(40, 3)),
        "picture": random.normal(5, 2, size=(40, 2, 3, 3)),
        "film": random.normal(5, 2, size=(40, 2, 3, 3, 3)) * np.array([1, 10, 100]).reshape(3, 1, 1),
        "sound": random.normal(-3, 4, size=(40, 5, 2)),
        "words": random.integers(1, 9, size=(40, 4)),
        "age": random.integers(20, 90, size=40).astype(float),
        "target": np.arange(40) % 2,
        "split": np.where(np.arange(40) < 30, "train", "test"),
        "table.present": np.arange(40) % 3 > 0,
    }
    np.savez(tmp_path / "x.npz", **arrays)
    data = standardized(load_data(settings(dataset=str(tmp_path / "x.npz"))))
    having = data.train.present[:, 0]
    table = data.train.inputs["table"]
    assert table[having].mean(0).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert table[having].std(0, correction=0).tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert not table[~having].any()
    for name, dims in {"picture": (0, 2, 3), "film": (0, 1, 3, 4), "sound": (0, 1), "age": (0,)}.items():
        values = data.train.inputs[name].double()
        assert values.mean(dims).abs().max() < 1e-6
        assert values.std(dims, correction=0).sub(1).abs().max() < 1e-6
    assert data.train.inputs["age"].shape == (30, 1)
    assert data.train.inputs["words"].dtype == torch.int64
    train_part = arrays["picture"][:30]
    expected = (arrays["picture"][30:] - train_part.mean((0, 2, 3), keepdims=True)) / train_part.std(
        (0, 2, 3), keepdims=True
    )
    assert data.test.inputs["picture"].numpy() == pytest.approx(expected, abs=1e-5)
    config = settings(dataset=str(tmp_path / "x.npz"), scale="standard", method="agm", epochs=1, modalities="table,age")
    run = train(config, tmp_path / "run")
    assert load_run(tmp_path / "run").evaluation == run.evaluation


def test_long_sequences_are_doubted_before_they_fill_the_memory(data, monkeypatch):
    monkeypatch.setattr("agm.training.doubts.memory", lambda: 2**30)
    splits = {
        name: Split({"sound": torch.zeros(len(split), 1000, 1)}, split.target) for name, split in data.splits.items()
    }
    long = MultimodalData("x", splits["train"], splits["test"], None, data.class_names)
    (told,) = doubts(long, 8)  # 4 bytes, 4 heads, 8 samples, 1000 x 1000: 0.12 GiB
    assert told.startswith("'sound' has sequences of 1000 steps, whose attention alone takes 0 GiB")
    assert doubts(long, 6) == []


def test_counts_that_are_no_tokens(settings, tmp_path):
    arrays = {"a": np.array([[-3], [4], [5]]), "target": np.array([0, 1, 1]), "split": ["train", "train", "test"]}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match="if these are quantities, store them as floating-point numbers"):
        train(settings(dataset=str(tmp_path / "x.npz"), method="joint"), tmp_path / "run")


def test_scaling_where_no_training_sample_has_a_modality(tmp_path, settings):
    random = np.random.default_rng(0)
    arrays = {
        "a": random.normal(5, 2, size=(30, 3)),
        "b": random.normal(5, 2, size=(30, 1, 4, 4)),
        "target": np.arange(30) % 2,
        "split": np.where(np.arange(30) < 20, "train", "test"),
        "b.present": np.arange(30) >= 20,
    }
    np.savez(tmp_path / "x.npz", **arrays)
    data = load_data(settings(dataset=str(tmp_path / "x.npz"), scale="standard"))
    assert not data.train.inputs["b"].any()
    assert data.test.inputs["b"].numpy() == pytest.approx(arrays["b"][20:], rel=1e-6)


def test_scaled_values_that_overflow(tmp_path, settings):
    table = np.zeros((20, 2))
    table[:, 0], table[0, 1], table[19, 1] = np.arange(20), 1e-30, 1e30
    split = np.where(np.arange(20) < 15, "train", "test")
    np.savez(tmp_path / "x.npz", table=table, other=table, target=np.arange(20) % 2, split=split)
    with pytest.raises(UserError, match="'table' of the test split to be like that of the training split"):
        load_data(settings(dataset=str(tmp_path / "x.npz"), scale="standard"))


def test_quantities_that_are_whole_numbers_are_doubted(tmp_path, settings):
    arrays = {"a": np.zeros((40, 3)), "b": np.zeros((40, 3)), "split": np.where(np.arange(40) < 30, "train", "test")}
    config = settings(dataset=str(tmp_path / "x.npz"), method="joint", epochs=1)
    ages = np.arange(40) % 30
    np.savez(tmp_path / "x.npz", **arrays, target=np.where(ages < 5, 5, ages))
    (told,) = doubts(load_data(config), 8)
    assert told.startswith("5 of 30 classes have no sample")
    assert told.endswith(
        'If the target is a quantity to be predicted, store it as numbers: floats, with `task` = "numbers".'
    )
    np.savez(
        tmp_path / "x.npz", **arrays, target=np.where(ages < 5, 5, ages), class_names=list(map(chr, range(97, 127)))
    )
    (told,) = doubts(load_data(config), 8)
    assert told.endswith("store labels that are numbered otherwise as strings.")


def test_grey_pictures_without_channels_are_doubted(tmp_path, settings):
    advice = "If these are grey pictures, store (1, 9, 12) a sample."
    grey = np.random.default_rng(0).integers(256, size=(40, 9, 12))
    arrays = {
        "b": np.zeros((40, 3)),
        "split": np.where(np.arange(40) < 30, "train", "test"),
        "target": np.arange(40) % 2,
    }
    config = settings(dataset=str(tmp_path / "x.npz"), method="joint", epochs=1, scale="none")
    for values, doubted in (
        (grey.astype(np.uint8), True),
        (grey[:, :4].astype(np.uint8), False),
        (grey / 255.0, False),
    ):
        np.savez(tmp_path / "x.npz", a=values, **arrays)
        told = [line for line in doubts(load_data(config), 8) if "grey" in line]
        assert [line.partition(". ")[2] for line in told] == [advice] * doubted


def test_large_targets_are_doubted(tmp_path, settings):
    random = np.random.default_rng(0)
    arrays = {"a": random.normal(size=(40, 3)), "b": random.normal(size=(40, 3)), "target": 1e6 + random.random(40)}
    np.savez(tmp_path / "x.npz", **arrays, split=np.where(np.arange(40) < 30, "train", "test"))
    config = settings(dataset=str(tmp_path / "x.npz"), method="joint", epochs=1)
    (told,) = doubts(load_data(config), 8)
    assert told.startswith("the target has values of about 1e+06")
