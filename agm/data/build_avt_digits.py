"""Builds AVT-Digits: AV-Digits with a third modality, the digit written out with typing mistakes."""

from __future__ import annotations

import json
import math
import os
import zipfile
from importlib import resources
from pathlib import Path
from random import Random

import numpy as np

from agm.data._npz import write_npz
from agm.data.written import SPELLINGS, encode, held_out, mistype

__all__ = ["build_avt_digits", "written_digits"]

LENGTH = 12  # letters; the longest spelling has 9
HELD_OUT = 1 / 3  # of the spellings of each digit: they are for testing alone


def build_avt_digits(
    path: str | os.PathLike[str],
    *,
    av_digits: str | os.PathLike[str] | None = None,
    typos: float = 0.15,
    seed: int = 0,
) -> Path:
    """Write every sample of an AV-Digits file out in words and write all three modalities as an `.npz`.

    Sound, image, labels and splits are those of the file, bit for bit. The same arguments give the same bytes under
    the same version of numpy, and the same values under every version.

    Args:
        path: the file to write, ending in .npz; `agm.data.load` reads it.
        av_digits: a file written by `build_av_digits`, for other noise in sound and image; the one that comes with the
            package by default.
        typos: share of the letters that are mistyped, from 0 to 1. Another share keeps the words and the splits.
        seed: of everything random.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: `av_digits` does not exist.
        ValueError: `av_digits` is no such file, or an argument is outside its range.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Expected `path` to end in .npz, but got {path.name!r}. Add the ending.")
    _check(typos, seed)
    if av_digits is None:
        with resources.as_file(resources.files("agm.data").joinpath("av_digits.npz")) as bundled:
            arrays = _read(bundled)
    else:
        arrays = _read(Path(av_digits))
    written = written_digits(arrays["target"], arrays["split"] == "test", typos=typos, seed=seed)
    build = json.loads(str(written.pop("meta.build")))
    build["av_digits"] = json.loads(str(arrays.pop("meta.build")))
    # Modalities in front, as in every dataset, so that they keep this order.
    front = {key: arrays.pop(key) for key in list(arrays) if key.split(".")[0] in ("audio", "image")}
    return write_npz(path, {**front, **written, **arrays, "meta.build": np.array(json.dumps(build, sort_keys=True))})


def written_digits(
    target: np.ndarray, is_test: np.ndarray, *, typos: float = 0.15, seed: int = 0
) -> dict[str, np.ndarray]:
    """The third modality: arrays "text", "meta.word", "meta.words" and "meta.build" by name.

    A third of the spellings of each digit, drawn at random, occurs in the test samples alone. "text" is standardised by
    the training samples: each letter has mean 0 at each place, and all of them together deviate by 1. Zeros, which
    stand for an absent modality, are then an average input.

    Args:
        target: (N,) digits.
        is_test: (N,) bool, the samples that are for testing.
        typos, seed: as in `build_avt_digits`.

    Returns:
        "text" (N, 12, 26) float32; "meta.word" (N,) int64, the spelling of each sample before it was mistyped, as a row
        of "meta.words"; "meta.build", the settings as a JSON text.

    Raises:
        ValueError: `typos` or `seed` is outside its range.
    """
    _check(typos, seed)
    # One stream of random numbers a purpose, so that changing the mistakes changes nothing else.
    parting, choosing, typing = (Random(3 * seed + stream) for stream in range(3))
    parts = [held_out(spellings, HELD_OUT, parting) for spellings in SPELLINGS]
    chosen = []
    for digit, testing in zip(target.tolist(), is_test.tolist(), strict=True):
        words = parts[digit][testing]
        chosen.append(words[int(len(words) * choosing.random())])
    letters = encode([mistype(word, typos, typing) for word in chosen], LENGTH)

    # From whole numbers by sums that are rounded once, so that the values do not depend on numpy's order of addition.
    training = letters[~is_test]
    share = training.sum(axis=0) / len(training)  # (LENGTH, 26)
    deviation = math.sqrt(math.fsum((share * (1 - share)).ravel().tolist()) / share.size)
    names = [word for spellings in SPELLINGS for word in spellings]
    build = {
        "dataset": "avt-digits",
        "typos": typos,
        "seed": seed,
        "length": LENGTH,
        "held_out": HELD_OUT,
        "text_mean": share.round(4).tolist(),
        "text_deviation": deviation,
    }
    return {
        "text": ((letters - share) / deviation).astype(np.float32),
        "meta.word": np.array([names.index(word) for word in chosen], dtype=np.int64),
        "meta.words": np.array(names),
        "meta.build": np.array(json.dumps(build, sort_keys=True)),
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file that `build_av_digits` wrote."""
    if not path.exists():
        raise FileNotFoundError(
            f"Expected `av_digits` to be a file of agm data build av-digits, but got {path}, which does not exist. "
            "Check the path, or leave it out for the bundled one."
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        dataset = json.loads(str(arrays["meta.build"]))["dataset"]
    except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise _other_file(path, f"a file that does not read as one ({error})") from error
    if dataset != "av-digits":
        raise _other_file(path, repr(dataset))
    return arrays


def _other_file(path: Path, found: str) -> ValueError:
    return ValueError(
        f"Expected `av_digits` to be a file of agm data build av-digits, but got {path}: {found}. "
        "Build one, or leave it out for the bundled one."
    )


def _check(typos: float, seed: int) -> None:
    if not 0 <= typos <= 1:
        raise ValueError(
            f"Expected `typos` to be a share from 0 to 1, but got {typos}. Use 0 for words without mistakes."
        )
    if seed < 0:
        raise ValueError(f"Expected `seed` to be an integer >= 0, but got {seed}. Choose another seed.")
