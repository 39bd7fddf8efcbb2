"""The bundled AVT-Digits and its builder."""

import hashlib
import json
from importlib import resources

import numpy as np
import pytest
import torch

import agm
import agm.data
from agm.data import avt_digits
from agm.data import build_avt_digits as builder
from agm.data.av_digits import read_build_settings
from agm.data.build_avt_digits import build_avt_digits, written_digits
from agm.data.written import LETTERS, SPELLINGS
from agm.models import build


@pytest.fixture(scope="module")
def data():
    return agm.data.load("avt-digits")


def arrays_of(name):
    with resources.as_file(resources.files("agm.data") / name) as path, np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def stored():
    return arrays_of("written_digits.npz")


@pytest.fixture(scope="module")
def sounds_and_images():
    return arrays_of("av_digits.npz")


def test_what_is_in_it(data):
    assert agm.data.available()[:2] == ("av-digits", "avt-digits")
    assert data.name == "avt-digits"
    assert data.modalities == ("audio", "image", "text")
    assert data.validation is None
    for split, length in ((data.train, 1347), (data.test, 450)):
        assert split.inputs["text"].shape == (length, 12, 26)
        assert {values.dtype for values in split.inputs.values()} == {torch.float32}


def test_sounds_and_images_are_those_of_av_digits(data):
    two = agm.data.load("av-digits")
    assert data.class_names == two.class_names
    for name, split in two.splits.items():
        assert torch.equal(data.splits[name].target, split.target)
        for modality, values in split.inputs.items():
            assert torch.equal(data.splits[name].inputs[modality], values)


def test_av_digits_is_bit_for_bit_what_it_was():
    # Runs of the past name it; whoever changes it gives it another name.
    content = (resources.files("agm.data") / "av_digits.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "23d175d0e24d09432af92b52ce88f3de28398680fc0adec75869052fc73f6f18"


def test_zeros_are_an_average_input(data):
    train = data.train.inputs["text"]
    assert train.mean(dim=0).abs().max() < 1e-6
    assert train.square().mean() == pytest.approx(1.0, abs=1e-5)
    assert data.test.inputs["text"].mean().abs() < 0.01


def test_test_spellings_are_new(stored):
    words, is_test = stored["meta.words"][stored["meta.word"]], stored["split"] == "test"
    training, testing = set(words[~is_test]), set(words[is_test])
    assert not training & testing
    for digit, spellings in enumerate(SPELLINGS):
        of_digit = stored["target"] == digit
        assert set(words[of_digit]) <= set(spellings)
        # Independent draws leave a word or two unused.
        drawn = round(len(spellings) / 3)
        assert drawn - 2 <= len(set(words[of_digit & is_test])) <= drawn
        assert len(spellings) - drawn - 2 <= len(set(words[of_digit & ~is_test])) <= len(spellings) - drawn


def written_words(stored):
    """The letters of the stored vectors, read back."""
    build = json.loads(str(stored["meta.build"]))
    letters = stored["text"].astype(np.float64) * build["text_deviation"] + np.array(build["text_mean"])
    np.testing.assert_allclose(letters, letters.round(), atol=1e-4)
    return ["".join(LETTERS[place.argmax()] for place in word if place.max() > 0.5) for word in letters]


def test_words_have_as_many_mistakes_as_the_settings_say(stored):
    words = stored["meta.words"][stored["meta.word"]].tolist()
    right = np.array([typed == word for typed, word in zip(written_words(stored), words, strict=True)])
    # One mistake in 104 shows nothing (the same letter again); exchanging equal letters is as rare.
    expected = np.mean([(1 - 0.15) ** len(word) for word in words])
    assert right.mean() == pytest.approx(expected, abs=0.04)


def nearest_training_word(stored):
    """Share of the test samples whose nearest training sample, by common letters at the same place, has their digit."""
    letters = torch.from_numpy(stored["text"] > 0).flatten(1).float()
    is_test, target = torch.from_numpy(stored["split"] == "test"), torch.from_numpy(stored["target"])
    nearest = (letters[is_test] @ letters[~is_test].T).argmax(dim=1)
    return (target[~is_test][nearest] == target[is_test]).double().mean().item()


def test_words_are_informative_and_do_not_suffice(stored, sounds_and_images):
    assert 0.35 < nearest_training_word(stored) < 0.60
    is_test = sounds_and_images["split"] == "test"
    clean = {**stored, **written_digits(stored["target"], is_test, typos=0.0)}
    spoilt = {**stored, **written_digits(stored["target"], is_test, typos=0.6)}
    assert nearest_training_word(clean) > nearest_training_word(stored) + 0.03
    assert nearest_training_word(spoilt) < nearest_training_word(stored) - 0.1
    assert np.array_equal(clean["meta.word"], stored["meta.word"])  # the same words, with other mistakes
    assert written_words(clean) == clean["meta.words"][clean["meta.word"]].tolist()


def test_the_words_say_nothing_about_voice_and_image(stored, sounds_and_images):
    # Within a digit the choice of the word does not depend on the loudness of the noise.
    snr = sounds_and_images["meta.snr"].astype(np.float64)
    for digit in range(10):
        of_digit = (stored["target"] == digit) & (stored["split"] == "train")
        correlation = np.corrcoef(stored["meta.word"][of_digit], snr[of_digit])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(of_digit.sum())


def test_the_bundled_words_are_those_of_the_builder(stored, sounds_and_images):
    built = written_digits(sounds_and_images["target"], sounds_and_images["split"] == "test")
    for name in ("target", "split", "class_names"):
        np.testing.assert_array_equal(stored[name], sounds_and_images[name])
    for name, values in built.items():
        assert values.dtype == stored[name].dtype
        np.testing.assert_array_equal(values, stored[name])


def test_words_of_another_split_are_noticed(monkeypatch):
    two = agm.data.load("av-digits")
    turned = agm.data.Split(two.test.inputs, two.test.target.flip(0))
    other = agm.data.MultimodalData("x", two.train, turned, None, two.class_names)
    monkeypatch.setattr(avt_digits, "load_av_digits", lambda: other)
    with pytest.raises(RuntimeError, match=r"labels of av_digits\.npz, but got others in test"):
        agm.data.load("avt-digits")


def test_a_build_is_bit_identical_and_loads(tmp_path, data):
    first, again = (build_avt_digits(tmp_path / name, typos=0.3, seed=2) for name in ("a.npz", "b.npz"))
    assert first.read_bytes() == again.read_bytes()
    built = agm.data.load(first)
    assert built.modalities == data.modalities
    for modality in ("audio", "image"):
        assert torch.equal(built.train.inputs[modality], data.train.inputs[modality])
    assert built.train.inputs["text"].shape == (1347, 12, 26)
    assert not torch.equal(built.train.inputs["text"], data.train.inputs["text"])
    settings = read_build_settings(first)
    assert (settings["dataset"], settings["typos"], settings["seed"]) == ("avt-digits", 0.3, 2)
    assert settings["av_digits"] == read_build_settings()
    assert settings["length"] == builder.LENGTH
    with np.load(first) as arrays:
        assert {"meta.voice", "meta.snr", "meta.word", "meta.words"} <= set(arrays.files)
    # At the defaults it is the bundled set in one file.
    plain = agm.data.load(build_avt_digits(tmp_path / "c.npz"))
    for name, split in data.splits.items():
        assert all(torch.equal(plain.splits[name].inputs[m], values) for m, values in split.inputs.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"typos": 1.5}, "`typos` to be a share from 0 to 1, but got 1.5"),
        ({"typos": float("nan")}, "`typos` to be a share from 0 to 1, but got nan"),
        ({"seed": -1}, "`seed` to be an integer >= 0, but got -1"),
        ({"path": "x.pt"}, "`path` to end in .npz, but got 'x.pt'"),
    ],
)
def test_build_refuses(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_avt_digits(**{"path": tmp_path / "x.npz", **arguments})
    assert not list(tmp_path.iterdir())


def test_build_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"which does not exist\. Check the path"):
        build_avt_digits(tmp_path / "x.npz", av_digits=tmp_path / "none.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    np.savez(tmp_path / "other.npz", audio=np.zeros(3))
    np.save(tmp_path / "plain.npy", np.zeros(3))
    three = build_avt_digits(tmp_path / "three.npz")
    for name in ("torn.npz", "other.npz", "plain.npy", three.name):
        with pytest.raises(ValueError, match=r"to be a file of agm data build av-digits, but got .*" + name):
            build_avt_digits(tmp_path / "x.npz", av_digits=tmp_path / name)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_three_modalities_take_a_modulated_step(data, masked):
    torch.manual_seed(0)
    shapes = {name: values.shape[1:] for name, values in data.train.inputs.items()}
    model = agm.AGM(build("late", shapes, 10, width=8), alpha=1.5, masked=masked)
    inputs, target = next(data.train.batches(32))
    torch.nn.functional.cross_entropy(model(**inputs, target=target), target).backward()
    coefficients = model.modulator.state.coefficients
    assert coefficients.shape == (3,)
    assert coefficients.isfinite().all()
    assert int(model.modulator.state.step) == 1
    report = agm.contributions(model, data.test.batches(150))
    assert report.samples == 450
    assert sum(report.contributions.values()) == pytest.approx(report.accuracy - 0.1)
