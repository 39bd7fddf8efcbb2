"""Sound files to waves, by soundfile and soxr."""

from __future__ import annotations

import io
import math
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from agm.data._files import known_failure, open_ordinary
from agm.data.layouts.extras import needed
from agm.data.layouts.front_ends import FRONT_ENDS, Padding
from agm.data.layouts.stored import read_stored

__all__ = ["RESAMPLERS", "SOUNDS", "read_features", "read_wave", "sound_features"]

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")  # what soundfile decodes
STORED = (".npy", ".pt", ".pkl")  # front ends that somebody has computed before
RESAMPLERS = ("soxr_hq", "kaiser_best")
LARGEST = 2**30  # bytes of one clip
SAMPLES = 2**28  # of one clip: an hour and a half at 48 kHz


def read_wave(
    source: Path | bytes, rate: int | None = None, resampler: str = "soxr_hq", name: str | None = None
) -> tuple[np.ndarray, int]:
    """Decode a sound file, mix its channels to one, and resample it.

    Args:
        source: a WAV, FLAC, OGG or MP3 file, or its content.
        rate: samples a second that are wanted; None for the file's own.
        resampler: "soxr_hq", which librosa 0.10 and newer takes by default, or "kaiser_best" of older ones (needs the
            package resampy).
        name: what errors call it; the path by default.

    Returns:
        (T,) float32, mostly within -1 and 1, and its rate.

    Raises:
        ModuleNotFoundError: a package that decodes is not installed.
        OSError: the file cannot be opened.
        ValueError: it does not decode, is empty, or holds NaN or infinity.
    """
    soundfile = needed("soundfile")
    name = name or (str(source) if isinstance(source, Path) else "the sound")
    opened = open_ordinary(source, LARGEST) if isinstance(source, Path) else nullcontext(io.BytesIO(source))
    with opened as file:
        try:
            with soundfile.SoundFile(file) as sound:
                found = int(sound.samplerate)
                if sound.frames * sound.channels > SAMPLES:
                    raise ValueError(f"{sound.frames} samples")
                channels = sound.read(dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
            file.seek(0)
            told = re.sub(r"^Error opening .*?: |\.$", "", " ".join(str(error).split()))
            raise ValueError(
                f"Expected {name} to be a sound file that decodes, but got: {known_failure(file.read(200)) or told}. "
                "Download it again, or leave such files out with agm data convert --skip-bad."
            ) from None
    wave = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
    if not len(wave) or not np.isfinite(wave).all():
        problem = "NaN or infinity in it" if len(wave) else "no samples"
        raise ValueError(
            f"Expected {name} to hold sound, but got {problem}. Repair it, or leave such files out with "
            "agm data convert --skip-bad."
        )
    if rate is None or rate == found:
        return wave, found
    if resampler == "kaiser_best":
        made = needed("resampy").resample(wave, found, rate, filter="kaiser_best")
    else:
        made = needed("soxr").resample(wave, found, rate, quality="HQ")
    length = math.ceil(len(wave) * rate / found)  # as librosa has it, whatever the resampler gives
    return np.pad(made[:length], (0, max(0, length - len(made)))).astype(np.float32), rate


def read_features(path: Path, front_end: str, padding: Padding = "constant", resampler: str = "soxr_hq") -> np.ndarray:
    """What a front end makes of a sound file; of a .npy, .pt or .pkl file, the numbers that it made, as they are.

    Returns:
        (1, H, W) float32.

    Raises:
        As `read_wave`, and `agm.data.layouts.stored.read_stored`.
    """
    if path.suffix in STORED:
        return _stored_features(path, front_end)
    return sound_features(path, front_end, padding, resampler)


def _stored_features(path: Path, front_end: str) -> np.ndarray:
    stored = np.asarray(read_stored(path))
    made = np.array(stored, dtype=np.float32) if stored.dtype.kind in "fiu" else np.zeros(())
    made = made[0] if made.ndim == 3 and len(made) == 1 else made
    if made.ndim != 2 or not np.isfinite(made).all():
        problem = f"{stored.dtype} of shape {stored.shape}" if made.ndim != 2 else "NaN or infinity in it"
        raise ValueError(
            f"Expected {path} to hold a finite spectrogram (H, W), but got {problem}. "
            "Compute it again, or leave such files out with agm data convert --skip-bad."
        )
    axis, size = FRONT_ENDS[front_end].stored
    if made.shape[axis] != size:
        raise ValueError(
            f"Expected {path} to hold what the front end {front_end} gives, {size} {('rows', 'columns')[axis]}, "
            f"but got shape {made.shape}. Choose the one that it was made with, such as --set audio=fbank."
        )
    return made[None]


def sound_features(
    source: Path | bytes,
    front_end: str,
    padding: Padding = "constant",
    resampler: str = "soxr_hq",
    name: str | None = None,
) -> np.ndarray:
    """What a front end makes of a sound file, or of its content: (1, H, W) float32."""
    end = FRONT_ENDS[front_end]
    wave, rate = read_wave(source, end.rate, resampler, name)
    return end.make(wave, rate, padding)
