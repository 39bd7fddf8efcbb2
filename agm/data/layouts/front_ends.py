"""Sound to what the published networks read: the front ends of this field's papers, number for number.

| name | rate | seconds | what | shape | who |
|---|---|---|---|---|---|
| stft | 22,050 | 3 | log magnitude, window 512, hop 353 | (1, 257, 188) | AGM, OGM-GE |
| stft-20s | 22,050 | 20 | the same | (1, 257, 1250) | AUG, LFM, IGM, AMSS |
| stft-16k | 16,000 | 5 | the same, window 256, hop 128 | (1, 129, 626) | OGM-GE on VGGSound |
| spectrogram | 22,050 | 7.3 | log power, 512 by 159, standardised a clip | (1, 257, 1004) | PMR, DI-MML |
| fbank | the file's | 10.2 | 128 mel filters each 10 ms | (1, 1024, 128) | MMPareto, D&R, BalanceBenchmark |

A clip that is too short is repeated, and cut at the end; fbank is filled with zeros instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch

__all__ = ["FRONT_ENDS", "FrontEnd", "Padding", "filter_bank", "log_spectrogram", "log_stft", "normalise_filter_bank"]

Padding = Literal["constant", "reflect"]


@dataclass(frozen=True)
class FrontEnd:
    """A front end: the sample rate that it takes (None: the file's own), its function, and what tells stored ones.

    `make(wave, rate, padding)` turns (T,) float32 into (1, H, W) float32. `stored` is the axis of the frequencies and
    their number.
    """

    rate: int | None
    make: Callable[[np.ndarray, int, Padding], np.ndarray]
    stored: tuple[int, int]


def log_stft(wave: np.ndarray, window: int, hop: int, padding: Padding = "constant") -> np.ndarray:
    """log(|STFT| + 1e-7) of a sound, with periodic Hann windows around every hop-th sample.

    Args:
        wave: (T,) float32.
        window: samples of a window, and of its Fourier transform.
        hop: samples from one window to the next.
        padding: beyond both ends. librosa 0.9 and newer pads with zeros ("constant"), older ones mirrored ("reflect").

    Returns:
        (window // 2 + 1, 1 + T // hop) float32.

    Example:
        >>> log_stft(np.zeros(66150, np.float32), 512, 353).shape
        (257, 188)

    Source: librosa.stft, as AGM's and OGM-GE's loaders call it.
    """
    made = torch.stft(
        torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)).double(),
        window,
        hop,
        window=_hann(window),
        center=True,
        pad_mode=padding,
        return_complex=True,
    ).numpy()
    size = made.real**2  # twice as fast as abs, which guards against squares that overflow
    size += made.imag**2
    np.sqrt(size, out=size)
    size += 1e-7
    return np.log(size.astype(np.float32))


def log_spectrogram(wave: np.ndarray, rate: int) -> np.ndarray:
    """log(power + 1e-7) in windows of 512 with steps of 159 samples, standardised over the clip.

    Args:
        wave: (T,) float32.
        rate: in Hz; the power is a density, so it counts.

    Returns:
        (257, (T - 353) // 159) float32.

    Source: scipy.signal.spectrogram(nperseg=512, noverlap=353), as PMR's preparation calls it: Tukey windows (0.25),
    the mean taken from each.
    """
    length, step = 512, 512 - 353
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, dtype=np.float64), length)[::step]
    frames = frames - frames.mean(axis=1, keepdims=True)
    taper = _tukey(length)
    power = np.abs(np.fft.rfft(frames * taper, axis=1)) ** 2 / (rate * (taper**2).sum())
    power[:, 1:-1] *= 2  # what the negative frequencies hold
    made = np.log(power + 1e-7).T
    return ((made - made.mean()) / (made.std() + 1e-9)).astype(np.float32)


def filter_bank(wave: np.ndarray, rate: int, filters: int = 128) -> np.ndarray:
    """Logarithms of the energy in mel filters, in windows of 25 ms each 10 ms.

    Args:
        wave: (T,) float32, of which the mean has been taken.
        rate: in Hz.
        filters: from 20 Hz to half the rate.

    Returns:
        (1 + (T - window) // shift, filters) float32; no rows where T is less than a window.

    Source: torchaudio.compliance.kaldi.fbank(htk_compat=True, use_energy=False, window_type="hanning", dither=0,
    frame_shift=10), as MMPareto's and BalanceBenchmark's preparation calls it.
    """
    length, shift = int(rate * 0.025), int(rate * 0.010)
    if len(wave) < length:
        return np.zeros((0, filters), dtype=np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, dtype=np.float64), length)[::shift]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1)))
    size = 1 << (length - 1).bit_length()
    power = np.abs(np.fft.rfft(frames, size, axis=1)) ** 2
    energy = power[:, : size // 2] @ _mel_filters(filters, size, rate).T
    return np.log(np.maximum(energy, np.finfo(np.float32).eps)).astype(np.float32)


def normalise_filter_bank(energies: np.ndarray, frames: int = 1024) -> np.ndarray:
    """Filter bank energies cut or filled with zeros to `frames` rows, then (x + 4.503877) / (2 * 5.141276).

    Source: AudioSet's mean and deviation, as MMPareto's loader applies them.
    """
    filled = np.zeros((frames, energies.shape[1]), dtype=np.float32)
    filled[: len(energies)] = energies[:frames]
    return (filled + np.float32(4.503877)) / np.float32(2 * 5.141276)


@cache
def _hann(length: int) -> torch.Tensor:
    return torch.hann_window(length, dtype=torch.float64)


@cache
def _tukey(length: int, share: float = 0.25) -> np.ndarray:
    """Tukey's window, periodic, as scipy's spectrogram has it."""
    place = np.arange(length, dtype=np.float64)
    flank = share * length / 2
    rise = 0.5 * (1 + np.cos(np.pi * (np.minimum(place, length - place) / flank - 1)))
    return np.where(np.minimum(place, length - place) < flank, rise, 1.0)


@cache
def _mel_filters(filters: int, size: int, rate: int) -> np.ndarray:
    """Triangles in mel, as Kaldi lays them: (filters, size // 2). In float32, whose rounding the originals have too."""
    low, high = (1127.0 * math.log(1.0 + edge / 700.0) for edge in (20.0, rate / 2))
    step = (high - low) / (filters + 1)
    places = np.arange(filters, dtype=np.float32)[:, None]
    left, centre, right = (np.float32(low) + (places + shift) * np.float32(step) for shift in (0, 1, 2))
    frequencies = np.float32(rate / size) * np.arange(size // 2, dtype=np.float32)
    bins = np.float32(1127.0) * np.log(np.float32(1.0) + frequencies / np.float32(700.0))
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.maximum(np.float32(0.0), np.minimum(rising, falling))


def _repeated(wave: np.ndarray, length: int) -> np.ndarray:
    """The clip again and again up to `length` samples, within -1 and 1."""
    return np.clip(np.resize(wave, length), -1.0, 1.0)


def _stft(seconds: int, window: int, hop: int) -> Callable[[np.ndarray, int, Padding], np.ndarray]:
    return lambda wave, rate, padding: log_stft(_repeated(wave, seconds * rate), window, hop, padding)[None]


def _spectrogram(wave: np.ndarray, rate: int, padding: Padding) -> np.ndarray:
    return log_spectrogram(_repeated(wave, 160_000), rate)[None]


def _fbank(wave: np.ndarray, rate: int, padding: Padding) -> np.ndarray:
    return normalise_filter_bank(filter_bank(wave - wave.mean(dtype=np.float64), rate))[None]


FRONT_ENDS = {
    "stft": FrontEnd(22_050, _stft(3, 512, 353), (0, 257)),
    "stft-20s": FrontEnd(22_050, _stft(20, 512, 353), (0, 257)),
    "stft-16k": FrontEnd(16_000, _stft(5, 256, 128), (0, 129)),
    "spectrogram": FrontEnd(22_050, _spectrogram, (0, 257)),
    "fbank": FrontEnd(None, _fbank, (1, 128)),
}
