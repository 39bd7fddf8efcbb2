"""Stamps of Tux Paint: pictures of things, their names, and people who say them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agm.data.builders.archives import open_packages
from agm.data.builders.groups import in_classes, split_groups
from agm.data.builders.pictures import load_pillow, standardised_pixels, thumbnail
from agm.data.builders.tables import standardised
from agm.data.builders.texts import plain, utf8
from agm.data.builders.writing import write_set
from agm.data.mel import log_mel, mel_filterbank, resample

__all__ = ["build_stamps"]

LEAST = 40  # stamps of a class; smaller ones are left out
NAME_LENGTH = 64  # bytes
SAMPLE_RATE, WINDOW, HOP, FFT_SIZE, NUM_MELS = 8000, 256, 80, 512, 40  # as in AV-Digits
FRAMES = 120  # 1.2 s: nearly all names are shorter
_FOLDER = "usr/share/tuxpaint/stamps/"


def build_stamps(
    path: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    *,
    language: str = "fr",
    seed: int = 0,
) -> Path:
    """Build the set of Tux Paint's stamps and write it as an `.npz` that `agm.data.load` reads.

    "image" (N, 3, 32, 32), "name" (N,) UTF-8 text and "speech" (N, 1, 40, 120), a log-mel spectrogram of 1.2 s, for
    every stamp that is a picture with a name and a voice in the language. Classes are folders of 40 stamps or more, and
    what lies in one folder below them is in one split. All files are under the GNU General Public License, version 2,
    and so is what is built from them: do not pass it on under another licence.

    Args:
        path: the file to write, ending in .npz.
        sources: Debian's package tuxpaint-stamps-default, as `apt-get download` gives it.
        language: of names and voices: fr, ru, ro, ca, bg, es, el or be.
        seed: of the split.

    Returns:
        The path written.

    Raises:
        ImportError: Pillow or soundfile is not installed.
        OSError: a file cannot be read or written.
        ValueError: the package is another or damaged, or the language has too few stamps.
    """
    load_pillow()
    (deb,) = open_packages(sources, "tuxpaint-stamps-default")
    voice = f"_desc_{language}.ogg"
    files = deb.files(lambda name: name.startswith(_FOLDER) and name.endswith((".png", ".txt", voice)))
    whole = [key for key in files if key.endswith(".png") and _parts(key, voice) <= files.keys()]
    names = {key: _name(files[key.removesuffix(".png") + ".txt"], language) for key in whole}
    pictures = {key: thumbnail(files[key]) for key in whole if names[key]}
    kept = [key for key, picture in pictures.items() if picture is not None]
    counts = {name: sum(_class(key) == name for key in kept) for name in sorted({_class(key) for key in kept})}
    classes = [name for name, count in counts.items() if count >= LEAST]
    if len(classes) < 2:
        raise ValueError(
            f"Expected argument `language` to have two classes or more of {LEAST} stamps with a name and a voice, but "
            f"got {counts} for {language!r}. Use fr, ru, ro, ca, bg, es, el or be."
        )
    kept = [key for key in kept if _class(key) in classes]
    target = np.array([classes.index(_class(key)) for key in kept])
    groups = [key.rpartition("/")[0] for key in kept]
    split = split_groups(groups, in_classes(target), np.random.default_rng(seed))
    return write_set(
        path,
        "stamps",
        {
            **standardised_pixels("image", np.stack([_known(pictures, key) for key in kept]), split == "train"),
            "name": utf8((names[key] for key in kept), NAME_LENGTH),
            "speech": _speech([files[key.removesuffix(".png") + voice] for key in kept], split == "train"),
            "target": target,
            "split": split,
            "class_names": np.array(classes),
        },
        (deb,),
        {"seed": seed, "language": language, "licence": "GPL-2", "groups": len(set(groups))},
        groups,
    )


def _class(name: str) -> str:
    return name.removeprefix(_FOLDER).partition("/")[0]


def _parts(picture: str, voice: str) -> set[str]:
    stem = picture.removesuffix(".png")
    return {stem + ".txt", stem + voice}


def _name(content: bytes, language: str) -> str:
    """The line of a language in a file of names; empty if it has none."""
    lines = content.decode("utf-8", "replace").splitlines()
    start = f"{language}.utf8="
    return next((plain(line.removeprefix(start)) for line in lines if line.startswith(start)), "")


def _known(pictures: Mapping[str, np.ndarray | None], key: str) -> np.ndarray:
    picture = pictures[key]
    assert picture is not None  # the others were left out
    return picture


def _speech(contents: Sequence[bytes], training: np.ndarray) -> np.ndarray:
    """(N, 1, NUM_MELS, FRAMES), each band standardised over the training samples."""
    filters = mel_filterbank(NUM_MELS, FFT_SIZE, SAMPLE_RATE)
    bands = np.stack([log_mel(_sound(content), filters, window=WINDOW, hop=HOP) for content in contents])
    return standardised(bands.transpose(0, 2, 1), training, over_time=True).transpose(0, 2, 1)[:, None]


def _sound(content: bytes) -> np.ndarray:
    """One channel at SAMPLE_RATE with mean power 1, cut or followed by silence to the length of FRAMES."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            "Expected soundfile to be installed for reading voices, but got none. "
            "Install it with: pip install soundfile"
        ) from error
    values, rate = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    sound = resample(values.mean(1), rate, SAMPLE_RATE)
    sound = sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9)
    length = WINDOW + (FRAMES - 1) * HOP
    return np.pad(sound[:length], (0, max(0, length - len(sound))))
