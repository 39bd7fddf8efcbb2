"""The bundled AV-Digits and its builder."""

import json
import shutil
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import torch

import agm.data
from agm.data import build_av_digits as builder
from agm.data import speech
from agm.data.av_digits import read_build_settings
from agm.data.build_av_digits import build_av_digits

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def data():
    return agm.data.load("av-digits")


@pytest.fixture(scope="module")
def stored():
    with resources.as_file(resources.files("agm.data") / "av_digits.npz") as path, np.load(path) as arrays:
        return dict(arrays)


def test_what_is_in_it(data):
    assert "av-digits" in agm.data.available()
    assert data.name == "av-digits"
    assert data.modalities == ("audio", "image")
    assert data.class_names[0] == "zero"
    assert data.class_names[9] == "nine"
    assert data.validation is None
    for split, length in ((data.train, 1347), (data.test, 450)):
        assert split.inputs["audio"].shape == (length, 1, 40, 80)
        assert split.inputs["image"].shape == (length, 1, 8, 8)
        assert {values.dtype for values in split.inputs.values()} == {torch.float32}
    assert torch.bincount(data.test.target).tolist() == [45] * 10
    assert torch.bincount(data.train.target).tolist() == [133, 137, 132, 138, 136, 137, 136, 134, 129, 135]


def test_order_is_shuffled(data):
    # A loader that does not shuffle must not see one class at a time.
    for split in data.splits.values():
        assert len(split.target[:50].unique()) == 10


def test_size_of_the_file():
    with resources.as_file(resources.files("agm.data") / "av_digits.npz") as path:
        assert path.stat().st_size < 4_000_000


def test_licences_are_there():
    folder = resources.files("agm.data") / "licenses"
    assert "CC BY 4.0" in (folder / "uci-optdigits.txt").read_text()
    assert "GNU General Public License" in (folder / "espeak-ng.txt").read_text()
    assert "BSD 3-Clause" in (folder / "scikit-learn.txt").read_text()
    assert "av_digits.npz" in (folder / "README.txt").read_text()


def test_voices_and_images_of_the_test_set_are_new(stored):
    is_test = stored["split"] == "test"
    names = stored["meta.voice_names"][stored["meta.voice"]]
    train, test = set(names[~is_test]), set(names[is_test])
    assert not train & test
    # Not even in another accent: what follows the "+" is the speaker.
    train_speakers, test_speakers = ({name.split("+")[1] for name in part} for part in (train, test))
    assert not train_speakers & test_speakers
    assert len(train_speakers) == 24
    assert len(test_speakers) == 8
    assert {name.split("+")[0] for name in train} == {name.split("+")[0] for name in test} == set(builder.ACCENTS)
    # Each image once in all: none is in both splits.
    assert sorted(stored["meta.image_index"]) == list(range(1797))


def _brightness(stored):
    """Images before they were standardised: pixels in [0, 1], and noise."""
    build = json.loads(str(stored["meta.build"]))
    standardised = stored["image"] * stored["image.scale"] + stored["image.offset"]
    return standardised * build["image_deviation"] + build["image_mean"]


def test_images_are_standardised_by_the_training_samples(data):
    train = data.train.inputs["image"]
    assert train.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert train.std().item() == pytest.approx(1.0, abs=1e-3)


def test_images_are_the_handwritten_digits_and_noise(stored):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    index = stored["meta.image_index"]
    assert (digits.target[index] == stored["target"]).all()
    image = _brightness(stored)
    noise = image[:, 0] - digits.images[index] / 16
    assert noise.mean() == pytest.approx(0.0, abs=0.005)
    assert noise.std() == pytest.approx(0.45, abs=0.005)
    # The tails are there (a normal has 0.27 % beyond three deviations), and the range cuts none off.
    assert (np.abs(noise) > 3 * 0.45).mean() == pytest.approx(0.0027, abs=0.0006)
    assert stored["image"].min() > 0
    assert stored["image"].max() < 255


def test_audio_is_standardised_by_the_training_samples(data, stored):
    train = data.train.inputs["audio"]
    bands = train.mean(dim=(0, 1, 3)), train.std(dim=(0, 1, 3))
    assert bands[0].abs().max() < 0.01
    assert (bands[1] - 1).abs().max() < 0.02
    assert data.test.inputs["audio"].mean().abs() < 0.1
    assert ((stored["audio"] == 0) | (stored["audio"] == 31)).mean() < 0.002  # cut off by the range
    assert stored["audio"].max() == 31


def test_noise_ratio_is_uniform(stored):
    snr = stored["meta.snr"]
    assert snr.min() >= -5
    assert snr.max() <= 10
    np.testing.assert_allclose(np.quantile(snr, [0.25, 0.5, 0.75]), [-1.25, 2.5, 6.25], atol=0.6)


def _ridge_correct(split_train, split_test, modality):
    """Which test samples a ridge classifier gets right: (N,) bool."""
    x, new = (s.inputs[modality].flatten(1).double() for s in (split_train, split_test))
    mean = x.mean(dim=0)
    x, new = x - mean, new - mean
    targets = torch.nn.functional.one_hot(split_train.target, 10).double()
    kernel = x @ x.T
    kernel.diagonal().add_(x.shape[1])
    scores = new @ (x.T @ torch.linalg.solve(kernel, targets - targets.mean(dim=0)))
    return scores.argmax(dim=1) == split_test.target


def test_both_modalities_are_informative_and_neither_is_easy(data, stored):
    correct = {modality: _ridge_correct(data.train, data.test, modality) for modality in data.modalities}
    assert 0.50 < correct["audio"].float().mean() < 0.70
    assert 0.62 < correct["image"].float().mean() < 0.82
    # The signal-to-noise ratios belong to their samples: louder speech is understood better.
    snr = torch.from_numpy(stored["meta.snr"][stored["split"] == "test"])
    loud, soft = correct["audio"][snr > 5].float().mean(), correct["audio"][snr < 0].float().mean()
    assert loud > soft + 0.1


def test_settings_are_those_of_the_builder():
    settings = read_build_settings()
    assert settings["image_noise"] == 0.45
    assert settings["snr"] == [-5.0, 10.0]
    assert settings["seed"] == 0
    assert settings["samples_per_class"] is None
    assert settings["espeak_ng"] == "1.51"
    constants = {"sample_rate": builder.SAMPLE_RATE, "window": builder.WINDOW, "hop": builder.HOP}
    assert {key: settings[key] for key in constants} == constants
    assert len(settings["mel_mean"]) == builder.NUM_MELS


def test_settings_of_another_file(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match=r"to hold `meta.build`, but got a"):
        read_build_settings(tmp_path / "x.npz")


def test_loading_imports_no_sklearn():
    code = "import sys, agm.data; agm.data.load('av-digits'); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_espeak
def test_small_build_is_bit_identical_and_loads(tmp_path):
    pytest.importorskip("sklearn")
    steps = []
    first = build_av_digits(
        tmp_path / "a.npz", samples_per_class=4, seed=3, progress=lambda done, of: steps.append((done, of))
    )
    again = build_av_digits(tmp_path / "b.npz", samples_per_class=4, seed=3)
    assert first.read_bytes() == again.read_bytes()
    assert steps == [(step, 40) for step in range(1, 41)]
    data = agm.data.load(str(first))
    assert data.name == "a"
    assert (len(data.train), len(data.test)) == (30, 10)
    assert torch.bincount(data.test.target).tolist() == [1] * 10

    clean = build_av_digits(tmp_path / "c.npz", samples_per_class=4, seed=3, image_noise=0.0, snr=(40, 40))
    settings = read_build_settings(clean)
    assert (settings["image_noise"], settings["snr"], settings["seed"]) == (0.0, [40, 40], 3)
    with np.load(first) as noisy, np.load(clean) as quiet:
        for key in ("target", "split", "meta.voice", "meta.image_index", "meta.speed", "meta.pitch"):
            np.testing.assert_array_equal(noisy[key], quiet[key])
        assert not np.array_equal(noisy["audio"], quiet["audio"])
        # Sixteenths survive 256 levels to half a level.
        image = _brightness(quiet)
        np.testing.assert_allclose(image * 16, np.round(image * 16), atol=16 * 0.5 / 255 + 1e-9)
        assert json.loads(str(quiet["meta.build"])) == settings


def test_another_seed_is_another_split():
    digits = np.repeat(np.arange(10), 175)
    index, is_test = zip(*(builder._choose(digits, 8, np.random.default_rng(seed)) for seed in (0, 1)), strict=True)
    assert not np.array_equal(index[0], index[1])
    for chosen, test in zip(index, is_test, strict=True):
        assert np.bincount(digits[chosen]).tolist() == [8] * 10
        assert np.bincount(digits[chosen[test]]).tolist() == [2] * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_noise": -0.1}, "`image_noise` to be a finite standard deviation >= 0, but got -0.1"),
        ({"image_noise": float("nan")}, "`image_noise` .* got nan"),
        ({"snr": (10.0, -5.0)}, r"`snr` to be two finite numbers of dB, the lower first, but got \(10.0, -5.0\)"),
        ({"snr": (0.0, float("inf"))}, "`snr` .* inf"),
        ({"snr": (0.0,)}, "`snr` to be two finite numbers"),
        ({"seed": -1}, "`seed` to be an integer >= 0, but got -1"),
        ({"samples_per_class": 3}, "`samples_per_class` to be None or in .* but got 3"),
        ({"path": "x.pt"}, "`path` to end in .npz, but got 'x.pt'"),
    ],
)
def test_build_refuses(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_av_digits(**{"path": tmp_path / "x.npz", **arguments})
    assert not list(tmp_path.iterdir())


def test_build_without_sklearn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn to be installed .* pip install scikit-learn"):
        build_av_digits(tmp_path / "x.npz")


def test_build_without_espeak(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(speech.SpeechError, match=r"espeak-ng to be installed, .* apt-get install espeak-ng"):
        build_av_digits(tmp_path / "x.npz")


@needs_espeak
def test_voices_that_do_not_exist():
    # espeak-ng itself accepts the variant and speaks with the plain voice.
    with pytest.raises(speech.SpeechError, match=r"but got no xx-none, nobody from version \d"):
        speech.check_voices(["en-us", "xx-none"], ["f3", "nobody"])
    with pytest.raises(speech.SpeechError, match=r"exit status 1: .*does not exist"):
        speech.synthesise("one", "xx-none", speed=160, pitch=50)


@needs_espeak
def test_silence_is_noticed():
    with pytest.raises(speech.SpeechError, match="to give sound for voice 'en-us', but got silence"):
        speech.synthesise("", "en-us", speed=160, pitch=50)


@needs_espeak
def test_speech_differs_by_voice_speed_and_pitch():
    sound, rate = speech.synthesise("seven", "en-us+f3", speed=140, pitch=50)
    assert rate == 22050
    assert 0.4 < len(sound) / rate < 1.5
    assert 0.1 < np.abs(sound).max() <= 1.0
    faster, _ = speech.synthesise("seven", "en-us+f3", speed=200, pitch=50)
    assert len(faster) < 0.85 * len(sound)
    for voice, pitch in (("en-us+m7", 50), ("en-gb+f3", 50), ("en-us+f3", 75)):
        other, _ = speech.synthesise("seven", voice, speed=140, pitch=pitch)
        assert not np.array_equal(other, sound)
