"""Emoji: pictures, and names in a dozen languages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agm.data.builders.archives import Package, open_packages, require
from agm.data.builders.groups import in_classes, split_groups
from agm.data.builders.pictures import load_pillow, standardised_pixels, thumbnail
from agm.data.builders.texts import plain, utf8
from agm.data.builders.writing import write_set

__all__ = ["LANGUAGES", "build_emoji"]

CLASSES = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink"),
    *("Travel & Places", "Activities", "Objects", "Symbols"),
)
LANGUAGES = ("en", "de", "es", "fr", "ru", "tr", "ar", "hi", "id", "zh", "ja", "ko")
NAME_LENGTH, KEYWORDS_LENGTH = 64, 96  # bytes
LONGER = {"hi": 128}  # whose letters have three bytes each
_IMAGES, _JSON = "package/img/google/64/", "package/emoji.json"
_SELECTOR = "\ufe0f"  # asks for the coloured form of a character; the annotations leave it out
# Names that differ by these alone are of one drawing: woman singer, man singer, singer.
_PEOPLE = re.compile(
    r"\b(wo)?m[ae]n\b|\bpersons?\b|\bpeople\b|\bboys?\b|\bgirls?\b|\bchild(ren)?\b|\badults?\b|\b(fe)?male\b"
    r"|\b(right|left)ward\b|\bfacing right\b|[^\w\s]"
)


def build_emoji(path: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]], *, seed: int = 0) -> Path:
    """Build the set of emoji and write it as an `.npz` that `agm.data.load` reads.

    "image" (N, 3, 32, 32), "name_en", "name_de" ... (N,) UTF-8 names in twelve languages, and "keywords_en". Classes
    are Unicode's categories without flags and components. Emoji whose English names differ only in who is drawn (man,
    woman, person) are in one split. An emoji without a name in one of the languages is left out.

    Args:
        path: the file to write, ending in .npz.
        sources: npm's packages emoji-datasource-google 16.0.0, and cldr-annotations-full and
            cldr-annotations-derived-full 48.2.0, as `npm pack` gives them.
        seed: of the split.

    Returns:
        The path written.

    Raises:
        ImportError: Pillow is not installed.
        OSError: a file cannot be read or written.
        ValueError: the packages are others, or damaged.
    """
    load_pillow()
    images, plain_names, derived = open_packages(
        sources, "emoji-datasource-google", "cldr-annotations-full", "cldr-annotations-derived-full"
    )
    files = images.files(lambda name: name == _JSON or name.startswith(_IMAGES))
    entries = [entry for entry in _entries(images, files) if entry["category"] in CLASSES]
    # Sequences of several characters (a heart on fire) are described in the second package.
    annotations = _annotations(derived, "annotationsDerived")
    for language, found in _annotations(plain_names, "annotations").items():
        annotations[language].update(found)

    skipped = {"no name in every language": 0, "no picture that opens": 0}
    rows: list[tuple[dict[str, Any], np.ndarray, dict[str, Mapping[str, list[str]]]]] = []
    for entry in sorted(entries, key=lambda entry: str(entry["unified"])):
        names = {language: _described(annotations[language], entry["unified"]) for language in LANGUAGES}
        pixels = thumbnail(files.get(_IMAGES + str(entry["image"]), b""))
        if not all("tts" in found for found in names.values()):
            skipped["no name in every language"] += 1
        elif pixels is None:
            skipped["no picture that opens"] += 1
        else:
            rows.append((entry, pixels, names))

    target = np.array([CLASSES.index(entry["category"]) for entry, _, _ in rows])
    groups = [_base(names["en"]["tts"][0]) for _, _, names in rows]
    split = split_groups(groups, in_classes(target), np.random.default_rng(seed))
    texts = {
        f"name_{language}": utf8(
            (plain(names[language]["tts"][0]) for _, _, names in rows), LONGER.get(language, NAME_LENGTH)
        )
        for language in LANGUAGES
    }
    keywords = (", ".join(map(plain, names["en"].get("default", []))) for _, _, names in rows)
    return write_set(
        path,
        "emoji",
        {
            **standardised_pixels("image", np.stack([pixels for _, pixels, _ in rows]), split == "train"),
            **texts,
            "keywords_en": utf8(keywords, KEYWORDS_LENGTH),
            "target": target,
            "split": split,
            "class_names": np.array([name.lower().replace(" & ", "_and_") for name in CLASSES]),
        },
        (images, plain_names, derived),
        {"seed": seed, "groups": len(set(groups)), "skipped": skipped},
        groups,
    )


def _entries(package: Package, files: dict[str, bytes]) -> list[dict[str, Any]]:
    try:
        found = json.loads(require(files, _JSON, package))
        return [entry for entry in found if entry["has_img_google"] and entry["unified"] and entry["image"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {_JSON} in {package.path} to be a list of emoji, but got: {error}. "
            "Use emoji-datasource-google 16.0.0."
        ) from error


def _annotations(package: Package, kind: str) -> dict[str, dict[str, Mapping[str, list[str]]]]:
    """Language -> character -> its annotations."""
    paths = {language: f"package/{kind}/{language}/annotations.json" for language in LANGUAGES}
    files = package.files(lambda name: name in paths.values())
    found = {}
    for language, name in paths.items():
        try:
            known = json.loads(require(files, name, package))[kind]["annotations"]
            found[language] = {character.replace(_SELECTOR, ""): described for character, described in known.items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"Expected {name} in {package.path} to hold annotations, but got: {error!r}. Use version 48.2.0."
            ) from error
    return found


def _described(annotations: dict[str, Mapping[str, list[str]]], unified: str) -> Mapping[str, list[str]]:
    """The annotations of an emoji, by its code points in hexadecimal digits between hyphens."""
    character = "".join(chr(int(point, 16)) for point in unified.split("-"))
    return annotations.get(character.replace(_SELECTOR, ""), {})


def _base(name: str) -> str:
    return " ".join(_PEOPLE.sub(" ", name.lower()).split()) or name.lower()
