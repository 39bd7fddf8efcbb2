"""Open Clip Art: drawings with titles and keywords, by subject."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agm.data.builders.archives import open_packages
from agm.data.builders.groups import in_classes, split_groups
from agm.data.builders.pictures import load_pillow, standardised_pixels, thumbnail
from agm.data.builders.texts import plain, utf8
from agm.data.builders.writing import write_set

__all__ = ["build_clipart"]

CLASSES = (
    *("animals", "computer", "food", "geography", "office", "people"),
    *("recreation", "signs_and_symbols", "tools", "transportation"),
)
MOST = 300  # drawings of a class
TITLE_LENGTH, KEYWORDS_LENGTH = 64, 96  # bytes: 99 of 100 fit
# Keywords that hold one of these name a class, or nearly: 70 % of all lists have one.
CLASS_WORDS = (
    *("animal", "computer", "food", "geograph", "office", "people", "person"),
    *("recreation", "sign", "symbol", "tool", "transport"),
)
_PNG, _SVG = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
_DC = "{http://purl.org/dc/elements/1.1/}"


@dataclass(frozen=True)
class _Work:
    title: str
    keywords: tuple[str, ...]
    author: str
    is_free: bool


def build_clipart(
    path: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    *,
    keep_class_words: bool = False,
    seed: int = 0,
) -> Path:
    """Build the set of Open Clip Art and write it as an `.npz` that `agm.data.load` reads.

    "image" (N, 3, 32, 32), "title" and "keywords" (N,) UTF-8 text. A drawing is in it if its own licence tag says that
    it is in the public domain, it opens, and none before it looks the same; a class has at most 300. Drawings by one
    author in one folder, which often are series, are in one split. Who drew them, and keywords that say it, are left
    out.

    Args:
        path: the file to write, ending in .npz.
        sources: Debian's packages openclipart-png and openclipart-svg, as `apt-get download` gives them.
        keep_class_words: leave those keywords in that name the class, which nearly give the answer away.
        seed: of the choice and of the split.

    Returns:
        The path written.

    Raises:
        ImportError: Pillow is not installed.
        OSError: a file cannot be read or written.
        ValueError: the packages are others, or damaged.
    """
    load_pillow()
    png, svg = open_packages(sources, "openclipart-png", "openclipart-svg")
    pictures = png.files(lambda name: name.startswith(_PNG) and name.endswith(".png") and _class(name) in CLASSES)
    drawings = svg.files(lambda name: name.startswith(_SVG) and name.endswith(".svg"))

    chooser, divider = (np.random.default_rng([seed, stream]) for stream in range(2))
    reasons = ("no drawing beside the picture", "no tag of the public domain", "does not open", "there already")
    skipped = dict.fromkeys(reasons, 0)
    rows: list[tuple[str, np.ndarray, _Work]] = []
    seen: set[bytes] = set()
    for name in CLASSES:
        of_class = [key for key in pictures if _class(key) == name]
        taken = 0
        for number in chooser.permutation(len(of_class)):
            key = of_class[number]
            work = _read_work(drawings.get(_SVG + key.removeprefix(_PNG).removesuffix(".png") + ".svg"))
            if work is None:
                skipped["no drawing beside the picture"] += 1
            elif not work.is_free:
                skipped["no tag of the public domain"] += 1
            elif (pixels := thumbnail(pictures[key])) is None:
                skipped["does not open"] += 1
            elif pixels.tobytes() in seen:
                skipped["there already"] += 1
            else:
                seen.add(pixels.tobytes())
                rows.append((key, pixels, work))
                taken += 1
            if taken == MOST:
                break
    rows.sort(key=lambda row: row[0])

    target = np.array([CLASSES.index(_class(key)) for key, _, _ in rows])
    folders = [key.rpartition("/")[0] for key, _, _ in rows]
    groups = [(folder, work.author) for folder, (_, _, work) in zip(folders, rows, strict=True)]
    split = split_groups(groups, in_classes(target), divider)
    keywords = [
        [k for k in work.keywords if not _names_author(k, work) and (keep_class_words or not _names_class(k))]
        for _, _, work in rows
    ]
    return write_set(
        path,
        "clipart",
        {
            **standardised_pixels("image", np.stack([pixels for _, pixels, _ in rows]), split == "train"),
            "title": utf8((work.title for _, _, work in rows), TITLE_LENGTH),
            "keywords": utf8((", ".join(words) for words in keywords), KEYWORDS_LENGTH),
            "target": target,
            "split": split,
            "class_names": np.array(CLASSES),
        },
        (png, svg),
        {"seed": seed, "keep_class_words": keep_class_words, "groups": len(set(groups)), "skipped": skipped},
        groups,
    )


def _class(name: str) -> str:
    return name.removeprefix(_PNG).partition("/")[0]


def _names_class(keyword: str) -> bool:
    return any(word in keyword.lower() for word in CLASS_WORDS)


def _names_author(keyword: str, work: _Work) -> bool:
    """Who drew it says nothing of what is drawn, and people's names do not belong in a set."""
    author, keyword = work.author.lower(), keyword.lower()
    return len(keyword) > 3 and len(author) > 3 and (keyword in author or author in keyword)


def _read_work(content: bytes | None) -> _Work | None:
    """What a drawing says of itself; None where it says nothing that reads."""
    if content is None:
        return None
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, ValueError):
        return None
    work = next((node for node in root.iter() if node.tag.endswith("}Work")), None)
    if work is None:
        return None
    title = plain(work.findtext(_DC + "title") or "")
    author = next((plain("".join(node.itertext())) for node in work if node.tag == _DC + "creator"), "")
    keywords = [
        plain(node.text or "")
        for subject in work
        if subject.tag == _DC + "subject"
        for node in subject.iter()
        if node.tag.endswith("}li")
    ]
    tags = [node for node in root.iter() if node.tag.endswith(("}license", "}License"))]
    licences = {value for node in tags for value in node.attrib.values()}
    free = bool(licences) and all(re.fullmatch(r"(.*/)?public ?domain/?", value, re.IGNORECASE) for value in licences)
    return _Work(title, tuple(dict.fromkeys(k for k in keywords if k)), author, free)
