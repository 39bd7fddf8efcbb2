"""Builds AV-Digits: noisy images of handwritten digits, paired with spoken ones.

Training needs none of what this file imports: the dataset at its default difficulty comes with the package.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agm.data._npz import write_npz
from agm.data.mel import log_mel, mel_filterbank, resample
from agm.data.speech import check_voices, espeak_version, synthesise

__all__ = ["build_av_digits"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = (
    *("en-us", "en-us-nyc", "en-029", "en-gb"),
    *("en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp"),
)
# A variant is a speaker: formants, breath, pitch range. No test speaker is heard in training, in any accent.
TRAIN_VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "klatt", "klatt2", "klatt4"),
    *("croak", "Alex", "Alicia", "Andy", "Denis", "Gene", "boris", "ed", "gustave", "john", "linda", "steph"),
)
TEST_VARIANTS = ("m7", "m8", "f4", "f5", "Annie", "david", "grandma", "paul")
SPEEDS = (140, 155, 170, 185, 200)  # words a minute
PITCHES = (25, 35, 45, 55, 65, 75)

TEST_PER_CLASS = 45  # 450 of the 1,797 images

SAMPLE_RATE = 8000
WINDOW, HOP, FFT_SIZE = 256, 80, 512  # 32 ms and 10 ms
NUM_MELS, FRAMES = 40, 80
SOUND_LENGTH = WINDOW + (FRAMES - 1) * HOP  # 0.82 s
SILENCE = 0.01  # of the peak: what is quieter at the ends of an utterance is cut

AUDIO_LEVELS, AUDIO_RANGE = 32, (-4.0, 4.0)  # of the standardised log-mel values
IMAGE_LEVELS, IMAGE_MARGIN = 256, 4.5  # the range is [0, 1] widened by this many standard deviations of noise


def build_av_digits(
    path: str | os.PathLike[str],
    *,
    image_noise: float = 0.45,
    snr: tuple[float, float] = (-5.0, 10.0),
    seed: int = 0,
    samples_per_class: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Build AV-Digits and write it as an `.npz` that `agm.data.load` reads.

    The same arguments give the same bytes under the same versions of espeak-ng, scikit-learn and numpy.
    Another noise with the same seed keeps the images, voices, pairs and splits.

    Args:
        path: the file to write, ending in .npz.
        image_noise: standard deviation of the Gaussian noise on the images, whose pixels lie in [0, 1].
        snr: lowest and highest signal-to-noise ratio of the speech in dB, drawn uniformly a sample.
        seed: of everything random.
        samples_per_class: for a small set, this many images a class, one in four for testing; all by default.
        progress: called with (samples done, samples in all) after each sample.

    Returns:
        The path written.

    Raises:
        ImportError: scikit-learn is not installed.
        agm.data.speech.SpeechError: espeak-ng is not installed, or lacks a voice.
        ValueError: an argument outside its range.
    """
    path = Path(path)
    _check(path, image_noise, snr, seed, samples_per_class)
    images, digits, sklearn_version = _handwritten()
    check_voices(ACCENTS, TRAIN_VARIANTS + TEST_VARIANTS)

    # One stream of random numbers a purpose, so that changing one noise changes nothing else.
    chooser, blur, hiss = (np.random.default_rng([seed, stream]) for stream in range(3))
    image_index, is_test = _choose(digits, samples_per_class, chooser)
    target = digits[image_index]

    noise = blur.standard_normal((len(target), 8, 8))
    image = images[image_index] + image_noise * noise
    voice_names = [f"{a}+{v}" for v in TRAIN_VARIANTS + TEST_VARIANTS for a in ACCENTS]
    first_test_voice = len(ACCENTS) * len(TRAIN_VARIANTS)
    voice = np.where(
        is_test,
        chooser.integers(first_test_voice, len(voice_names), len(target)),
        chooser.integers(0, first_test_voice, len(target)),
    )
    speeds, pitches = chooser.choice(SPEEDS, len(target)), chooser.choice(PITCHES, len(target))
    snrs = chooser.uniform(*snr, len(target))

    filters = mel_filterbank(NUM_MELS, FFT_SIZE, SAMPLE_RATE)
    spoken: dict[tuple[str, int, int, int], np.ndarray] = {}
    audio = np.empty((len(target), NUM_MELS, FRAMES))
    for row, digit in enumerate(target):
        key = (voice_names[voice[row]], int(digit), int(speeds[row]), int(pitches[row]))
        if key not in spoken:
            spoken[key] = _speak(*key)
        sound = _mix(spoken[key], snrs[row], hiss)
        audio[row] = log_mel(sound, filters, window=WINDOW, hop=HOP)
        if progress is not None:
            progress(row + 1, len(target))

    # Each mel band is standardised by the training samples; what the test set looks like is not used.
    mean = audio[~is_test].mean(axis=(0, 2), keepdims=True)
    deviation = audio[~is_test].std(axis=(0, 2), keepdims=True)
    audio = (audio - mean) / deviation
    # So is the brightness: zeros, which stand for an absent modality, are then an average input of either.
    brightness, contrast = image[~is_test].mean(), image[~is_test].std()
    margin = IMAGE_MARGIN * image_noise
    low, high = ((bound - brightness) / contrast for bound in (-margin, 1 + margin))
    image = (image - brightness) / contrast

    build = {
        "dataset": "av-digits",
        "image_noise": image_noise,
        "snr": list(snr),
        "seed": seed,
        "samples_per_class": samples_per_class,
        "sample_rate": SAMPLE_RATE,
        "window": WINDOW,
        "hop": HOP,
        "fft_size": FFT_SIZE,
        "image_mean": float(brightness),
        "image_deviation": float(contrast),
        "mel_mean": mean.ravel().round(4).tolist(),
        "mel_deviation": deviation.ravel().round(4).tolist(),
        "espeak_ng": espeak_version(),
        "scikit_learn": sklearn_version,
        "numpy": np.__version__,
        "sources": "UCI Optical Recognition of Handwritten Digits, CC BY 4.0, doi:10.24432/C50P49; "
        "speech synthesised by espeak-ng",
    }
    return write_npz(
        path,
        {
            **_quantised("audio", audio[:, None], AUDIO_LEVELS, *AUDIO_RANGE),
            **_quantised("image", image[:, None], IMAGE_LEVELS, low, high),
            "target": target.astype(np.int64),
            "split": np.where(is_test, "test", "train"),
            "class_names": np.array(WORDS),
            "meta.voice": voice.astype(np.int64),
            "meta.voice_names": np.array(voice_names),
            "meta.speed": speeds,
            "meta.pitch": pitches,
            "meta.snr": snrs.astype(np.float32),
            "meta.image_index": image_index,
            "meta.build": np.array(json.dumps(build, sort_keys=True)),
        },
    )


def _handwritten() -> tuple[np.ndarray, np.ndarray, str]:
    """Images (1797, 8, 8) in [0, 1], digits (1797,), and the version of scikit-learn."""
    try:
        import sklearn
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "Expected scikit-learn to be installed for building av-digits, but got none. "
            "Install it with: pip install scikit-learn"
        ) from error
    digits = load_digits()
    return digits.images / 16.0, digits.target.astype(np.int64), sklearn.__version__


def _choose(
    digits: np.ndarray, samples_per_class: int | None, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which images, in which order, and which of them are for testing: as many of every class."""
    index, is_test = [], []
    for digit in range(10):
        of_class = random.permutation(np.flatnonzero(digits == digit))[:samples_per_class]
        num_test = TEST_PER_CLASS if samples_per_class is None else samples_per_class // 4
        index.append(of_class)
        is_test.append(np.arange(len(of_class)) < num_test)
    order = random.permutation(sum(map(len, index)))
    return np.concatenate(index)[order], np.concatenate(is_test)[order]


def _speak(voice: str, digit: int, speed: int, pitch: int) -> np.ndarray:
    """An utterance at SAMPLE_RATE without its silent ends, of mean power 1, at most SOUND_LENGTH samples."""
    sound, rate = synthesise(WORDS[digit], voice, speed=speed, pitch=pitch)
    sound = resample(sound, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(sound) > SILENCE * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1][:SOUND_LENGTH]
    return sound / np.sqrt(np.mean(sound**2))


def _mix(spoken: np.ndarray, snr: float, random: np.random.Generator) -> np.ndarray:
    """(SOUND_LENGTH,) of mean power 1: the utterance at a random place in white noise."""
    start = random.integers(0, SOUND_LENGTH - len(spoken) + 1)
    sound = 10.0 ** (-snr / 20.0) * random.standard_normal(SOUND_LENGTH)
    sound[start : start + len(spoken)] += spoken
    return sound / np.sqrt(np.mean(sound**2))


def _quantised(name: str, values: np.ndarray, levels: int, low: float, high: float) -> dict[str, np.ndarray]:
    step = (high - low) / (levels - 1)
    codes = np.clip(np.round((values - low) / step), 0, levels - 1).astype(np.uint8)
    return {name: codes, f"{name}.scale": np.asarray(step), f"{name}.offset": np.asarray(low)}


def _check(path: Path, image_noise: float, snr: tuple[float, float], seed: int, samples_per_class: int | None) -> None:
    if path.suffix != ".npz":
        raise ValueError(f"Expected `path` to end in .npz, but got {path.name!r}. Add the ending.")
    if not (math.isfinite(image_noise) and image_noise >= 0):
        raise ValueError(
            f"Expected `image_noise` to be a finite standard deviation >= 0, but got {image_noise}. "
            "Use 0 for clean images."
        )
    if len(snr) != 2 or not all(map(math.isfinite, snr)) or snr[0] > snr[1]:
        raise ValueError(
            f"Expected `snr` to be two finite numbers of dB, the lower first, but got {snr}. "
            "Use for instance (40, 40) for clean speech."
        )
    if seed < 0:
        raise ValueError(f"Expected `seed` to be an integer >= 0, but got {seed}. Choose another seed.")
    if samples_per_class is not None and not 4 <= samples_per_class <= 174:
        raise ValueError(
            "Expected `samples_per_class` to be None or in [4, 174] (the rarest digit has 174 images), "
            f"but got {samples_per_class}. Choose another number."
        )
