"""Sounds and images as librosa, scipy, torchaudio and torchvision make them: numbers that those libraries gave."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from agm.data.layouts import front_ends, pictures, sound

from .trees import pixels, write_sound

GOLDEN = np.load(Path(__file__).parents[2] / "golden/front_ends/originals.npz")
SPECTROGRAMS = {
    "stft": ("stft_constant", np.s_[::16, ::9], (1, 257, 188)),
    "stft-20s": ("stft_20s", np.s_[::16, ::50], (1, 257, 1250)),
    "stft-16k": ("stft_16k", np.s_[::16, ::31], (1, 129, 626)),
    "spectrogram": ("spectrogram", np.s_[::16, ::31], (1, 257, 1004)),
    "fbank": ("fbank", np.s_[:60:4, ::5], (1, 1024, 128)),
}


@pytest.fixture
def clip(tmp_path):
    pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    return write_sound(tmp_path / "clip.wav")


@pytest.mark.parametrize("front_end", SPECTROGRAMS)
def test_front_ends_give_the_originals_numbers(front_end, clip):
    golden, places, shape = SPECTROGRAMS[front_end]
    made = sound.read_features(clip, front_end)
    assert made.shape == shape
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[0][places], GOLDEN[golden], rtol=0, atol=1e-5)


def test_both_paddings_of_librosa(clip):
    made = {padding: sound.read_features(clip, "stft", padding)[0] for padding in ("constant", "reflect")}
    for padding, values in made.items():
        edges = values[::16][:, [0, 1, -2, -1]]
        np.testing.assert_allclose(edges, GOLDEN[f"stft_{padding}_edge"], rtol=0, atol=1e-5)
    assert np.abs(made["constant"][:, 0] - made["reflect"][:, 0]).max() > 0.1
    assert np.array_equal(made["constant"][:, 1:-1], made["reflect"][:, 1:-1])  # only the ends differ


@pytest.mark.parametrize("resampler", sound.RESAMPLERS)
def test_resampling(resampler, clip):
    if resampler == "kaiser_best":
        pytest.importorskip("resampy")
    wave, rate = sound.read_wave(clip, 22_050, resampler)
    assert (rate, len(wave)) == (22_050, int(GOLDEN[f"resampled_{resampler}_length"]))
    np.testing.assert_allclose(wave[::37], GOLDEN[f"resampled_{resampler}"], rtol=0, atol=1e-6)


def test_short_and_silent_sounds():
    assert front_ends.filter_bank(np.ones(399, np.float32), 16_000).shape == (0, 128)
    assert front_ends.filter_bank(np.ones(400, np.float32), 16_000).shape == (1, 128)
    empty = front_ends.FRONT_ENDS["fbank"].make(np.zeros(5, np.float32), 16_000, "constant")
    assert np.unique(empty).tolist() == [np.float32(4.503877) / np.float32(2 * 5.141276)]
    silence = front_ends.FRONT_ENDS["stft"].make(np.zeros(5, np.float32), 22_050, "constant")
    np.testing.assert_allclose(silence, np.log(1e-7), rtol=1e-6)


def test_stored_front_ends_are_taken_as_they_are(tmp_path):
    stored = np.arange(700 * 128, dtype=np.float32).reshape(700, 128)
    np.save(tmp_path / "x.npy", stored)
    torch.save(torch.from_numpy(stored), tmp_path / "y.pt")
    made = sound.read_features(tmp_path / "x.npy", "fbank")
    assert np.array_equal(made, stored[None])
    assert np.array_equal(made, sound.read_features(tmp_path / "y.pt", "fbank"))
    with pytest.raises(ValueError, match=r"Expected .*x\.npy to hold what the front end stft gives, 257 rows, but got"):
        sound.read_features(tmp_path / "x.npy", "stft")
    np.save(tmp_path / "x.npy", np.array(["a"]))
    with pytest.raises(ValueError, match=r"Expected .*x\.npy to hold a finite spectrogram \(H, W\), but got <U1"):
        sound.read_features(tmp_path / "x.npy", "stft")


@pytest.fixture
def image():
    pillow = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    pillow.fromarray(pixels()).save(content, "PNG")
    return content.getvalue()


def test_images_are_resized_as_torchvision_does(image):
    made = pictures.normalised(pictures.read_image(image))
    assert made.shape == (3, 224, 224)
    np.testing.assert_allclose(made[:, ::16, ::16], GOLDEN["image"], rtol=0, atol=1e-6)


def test_random_parts_are_those_of_torchvision(image):
    for seed, (*box, flipped) in enumerate(GOLDEN["boxes"].tolist()):
        generator = torch.Generator().manual_seed(seed)
        assert [*pictures.random_crop(48, 64, generator)] == box
        assert (float(torch.rand(1, generator=generator)) < 0.5) == flipped
    for seed, crop in enumerate(GOLDEN["crops"]):
        generator = torch.Generator().manual_seed(seed)
        made = pictures.normalised(pictures.read_image(image, training=True, generator=generator))
        np.testing.assert_allclose(made[:, ::32, ::32], crop, rtol=0, atol=1e-6)


def test_images_of_any_shape_are_cropped():
    for height, width in ((1, 400), (400, 1), (1, 1)):
        for seed in range(20):
            top, left, high, wide = pictures.random_crop(height, width, torch.Generator().manual_seed(seed))
            assert 0 <= top <= top + high <= height
            assert 0 <= left <= left + wide <= width
            assert high > 0 < wide


def test_the_frozen_frame_is_numpys():
    drawn = [pictures.choose_frames(number, 1, "seeded")[0] for number in range(1, 12)]
    assert drawn == GOLDEN["choice_999"].tolist()


@pytest.mark.parametrize(
    ("number", "wanted", "pick", "places"),
    [
        (5, 2, "first", [0, 1]),
        (1, 3, "first", [0, 0, 0]),
        (1, 2, "seeded", [0, 0]),
        (6, 2, "lower-middle", [0, 3]),
        (10, 3, "lower-middle", [0, 3, 6]),
        (6, 3, "lower-middle", [0, 2, 4]),
        (6, 2, "middle", [1, 4]),
        (4, 2, "middle", [1, 3]),
        (3, 2, "middle", [0, 1]),
        (1, 3, "middle", [0, 0, 0]),
        (2, 3, "lower-middle", [0, 1, 1]),
    ],
)
def test_frames(number, wanted, pick, places):
    assert pictures.choose_frames(number, wanted, pick) == places


def test_training_takes_any_frame_of_a_segment():
    generator = torch.Generator().manual_seed(0)
    drawn = [pictures.choose_frames(6, 2, "middle", training=True, generator=generator) for _ in range(100)]
    assert {first for first, _ in drawn} == {0, 1, 2}
    assert {second for _, second in drawn} == {3, 4, 5}
