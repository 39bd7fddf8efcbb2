"""Sound to log-mel spectrograms, in numpy alone."""

from __future__ import annotations

import numpy as np

__all__ = ["hz_to_mel", "log_mel", "mel_filterbank", "mel_to_hz", "resample"]


def hz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    """Frequency in Hz to mel (the HTK formula: 1000 Hz is 1000 mel, nearly)."""
    return 2595.0 * np.log10(1.0 + np.asarray(frequency, dtype=np.float64) / 700.0)


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel, dtype=np.float64) / 2595.0) - 1.0)


def mel_filterbank(
    num_mels: int, fft_size: int, sample_rate: float, *, low: float = 60.0, high: float | None = None
) -> np.ndarray:
    """Triangular filters with centres evenly spaced in mel.

    Args:
        num_mels: number of filters.
        fft_size: length of the Fourier transform, in samples.
        sample_rate: in Hz.
        low, high: edges of the first and the last filter in Hz; `high` is half the sample rate by default.

    Returns:
        (num_mels, fft_size // 2 + 1) float64. Filters overlap so that each frequency between the first and
        the last centre has weights that sum to 1.

    Raises:
        ValueError: edges outside [0, sample_rate / 2] or in the wrong order, or filters so narrow that one of
            them holds no bin of the transform.
    """
    high = sample_rate / 2 if high is None else high
    if not 0 <= low < high <= sample_rate / 2:
        raise ValueError(
            f"Expected `low` and `high` to satisfy 0 <= low < high <= {sample_rate / 2:g} Hz, "
            f"but got {low:g} and {high:g}. Choose edges within half the sample rate."
        )
    edges = mel_to_hz(np.linspace(hz_to_mel(low), hz_to_mel(high), num_mels + 2))  # (num_mels + 2,)
    bins = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.clip(np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)), 0, None)
    if not (filters > 0).any(axis=1).all():
        raise ValueError(
            f"Expected `fft_size` to be large enough for {num_mels} filters from {low:g} to {high:g} Hz, "
            f"but got {fft_size}, which leaves a filter without a bin. Use fewer filters or a longer one."
        )
    return filters


def log_mel(
    sound: np.ndarray,
    filters: np.ndarray,
    *,
    window: int,
    hop: int,
    floor: float = 1e-6,
) -> np.ndarray:
    """Log-mel spectrogram: the natural logarithm of the power that each filter passes.

    Args:
        sound: (T,) float.
        filters: (num_mels, fft_size // 2 + 1), from `mel_filterbank`.
        window: samples a frame (Hann window), at most fft_size; shorter frames are padded with zeros.
        hop: samples from one frame to the next.
        floor: power added before the logarithm.

    Returns:
        (num_mels, frames) float64, frames = (T - window) // hop + 1. The power is divided by the window's
        own, so that white noise of variance 1 has power 1 in every bin.

    Raises:
        ValueError: a sound shorter than one window, or a window longer than the transform.
    """
    fft_size = 2 * (filters.shape[1] - 1)
    if not len(sound) >= window <= fft_size:
        raise ValueError(
            f"Expected `window` to be at most the sound's {len(sound)} samples and the transform's "
            f"{fft_size}, but got {window}. Pad the sound or shorten the window."
        )
    taper = np.hanning(window + 1)[:-1]  # periodic
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(sound, np.float64), window)[::hop]
    power = np.abs(np.fft.rfft(frames * taper, n=fft_size, axis=1)) ** 2 / np.sum(taper**2)
    # Not a matrix product: BLAS rounds differently with the number of its threads.
    return np.log(np.einsum("mf,tf->mt", filters, power) + floor)


def resample(sound: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample (T,) to (round(T * new_rate / rate),) by cutting or padding the spectrum.

    The sound is taken to be periodic, as it nearly is where it begins and ends in silence.
    """
    length = round(len(sound) * new_rate / rate)
    spectrum = np.fft.rfft(np.asarray(sound, dtype=np.float64))
    kept = spectrum[: length // 2 + 1]
    return np.fft.irfft(kept, n=length) * (length / len(sound))
