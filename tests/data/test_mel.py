"""Mel scale, filters, spectrograms and resampling against what is known of them."""

import numpy as np
import pytest

from agm.data.mel import hz_to_mel, log_mel, mel_filterbank, mel_to_hz, resample

RATE, FFT, WINDOW, HOP = 8000, 512, 256, 80


def test_mel_scale():
    assert hz_to_mel(0.0) == 0.0
    assert hz_to_mel(1000.0) == pytest.approx(1000.0, abs=0.02)  # how the scale is defined
    assert hz_to_mel(4000.0) == pytest.approx(2146.07, abs=0.01)
    frequencies = np.linspace(0, 4000, 50)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(frequencies)), frequencies, atol=1e-9)


def test_filters_are_triangles_that_sum_to_one():
    filters = mel_filterbank(40, FFT, RATE)
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    centres = mel_to_hz(np.linspace(hz_to_mel(60.0), hz_to_mel(4000.0), 42))[1:-1]
    assert filters.shape == (40, 257)
    assert filters.min() == 0.0
    assert filters.max() <= 1.0
    assert (np.abs(bins[filters.argmax(axis=1)] - centres) <= RATE / FFT).all()
    inside = (bins >= centres[0]) & (bins <= centres[-1])
    np.testing.assert_allclose(filters[:, inside].sum(axis=0), 1.0, atol=1e-12)
    assert (filters[:, bins <= 60.0] == 0).all()


def test_filters_refuse():
    with pytest.raises(ValueError, match="0 <= low < high <= 4000 Hz, but got 60 and 5000"):
        mel_filterbank(40, FFT, RATE, high=5000.0)
    with pytest.raises(ValueError, match="got 300 and 200"):
        mel_filterbank(40, FFT, RATE, low=300.0, high=200.0)
    with pytest.raises(ValueError, match=r"`fft_size` to be large enough for 40 filters.*got 64"):
        mel_filterbank(40, 64, RATE)


@pytest.mark.parametrize("frequency", [250.0, 1000.0, 3200.0])
def test_a_tone_lights_its_own_filter(frequency):
    filters = mel_filterbank(40, FFT, RATE)
    spectrogram = log_mel(np.sin(2 * np.pi * frequency * np.arange(6576) / RATE), filters, window=WINDOW, hop=HOP)
    assert spectrogram.shape == (40, 80)
    centres = mel_to_hz(np.linspace(hz_to_mel(60.0), hz_to_mel(4000.0), 42))[1:-1]
    nearest = np.abs(hz_to_mel(centres) - hz_to_mel(frequency)).argmin()
    assert (np.abs(spectrogram.argmax(axis=0) - nearest) <= 1).all()
    # Far from the tone there is nothing but the Hann window's side lobes.
    far = np.abs(np.arange(40) - nearest) > 8
    assert (spectrogram[nearest] - spectrogram[far].max(axis=0)).min() > np.log(1e4)


def test_white_noise_of_variance_one_has_power_one_a_bin():
    filters = mel_filterbank(40, FFT, RATE)
    noise = np.random.default_rng(0).standard_normal(200_000)
    power = np.exp(log_mel(noise, filters, window=WINDOW, hop=HOP, floor=0.0)).mean(axis=1) / filters.sum(axis=1)
    np.testing.assert_allclose(power, 1.0, rtol=0.12)
    louder = log_mel(10 * noise[:WINDOW], filters, window=WINDOW, hop=HOP, floor=0.0)
    softer = log_mel(noise[:WINDOW], filters, window=WINDOW, hop=HOP, floor=0.0)
    np.testing.assert_allclose(louder - softer, 2 * np.log(10), atol=1e-9)
    assert louder.shape == (40, 1)


def test_silence_gives_the_floor_and_short_sounds_an_error():
    filters = mel_filterbank(40, FFT, RATE)
    np.testing.assert_array_equal(log_mel(np.zeros(400), filters, window=WINDOW, hop=HOP), np.log(1e-6))
    with pytest.raises(ValueError, match=r"the sound's 255 samples.*but got 256"):
        log_mel(np.zeros(255), filters, window=WINDOW, hop=HOP)
    with pytest.raises(ValueError, match="the transform's 512, but got 600"):
        log_mel(np.zeros(1000), filters, window=600, hop=HOP)


def test_resampling_keeps_tones_below_half_the_rate_and_drops_others():
    time, new_time = np.arange(22050) / 22050, np.arange(8000) / 8000
    low, high = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 6000 * time)
    np.testing.assert_allclose(resample(low + high, 22050, 8000), np.sin(2 * np.pi * 440 * new_time), atol=1e-9)
    np.testing.assert_allclose(resample(resample(low, 22050, 44100), 44100, 22050), low, atol=1e-9)
    assert resample(np.ones(101), 22050, 8000) == pytest.approx(np.ones(37))
