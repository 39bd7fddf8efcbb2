"""All layouts, and which of them a folder has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from agm.data.layouts.av_mnist import AVMnist
from agm.data.layouts.ave import Ave
from agm.data.layouts.ave_clips import AveClips
from agm.data.layouts.balanced_av import BalancedAV
from agm.data.layouts.crema_d import CremaD
from agm.data.layouts.downloads import hint
from agm.data.layouts.food101 import Food101, Food101Json
from agm.data.layouts.hugging_face import HuggingFace
from agm.data.layouts.iemocap import Iemocap
from agm.data.layouts.kinetics_sounds import KineticsSounds, KineticsSounds34
from agm.data.layouts.layout import Layout
from agm.data.layouts.mosei import Mosei, Mosi, Mustard
from agm.data.layouts.mosei_words import MoseiWords
from agm.data.layouts.sensors import Opportunity, Pamap2, UciHar, UniMib, UscHad, Wisdm
from agm.data.layouts.shards import Shards
from agm.data.layouts.tweets import Sarcasm, Twitter15
from agm.data.layouts.ucf101 import Ucf101
from agm.data.layouts.ur_funny import UrFunny
from agm.data.layouts.vggsound import VggSound

__all__ = ["LAYOUTS", "Recognition", "open_layout", "recognise"]

LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout
    for layout in (
        CremaD,
        AVMnist,
        UrFunny,
        Ave,
        AveClips,
        Mosei,
        Mosi,
        MoseiWords,
        Mustard,
        KineticsSounds,
        KineticsSounds34,
        VggSound,
        Ucf101,
        Food101,
        Food101Json,
        Twitter15,
        Sarcasm,
        Iemocap,
        BalancedAV,
        UciHar,
        Pamap2,
        Wisdm,
        Opportunity,
        UniMib,
        UscHad,
        HuggingFace,
        Shards,
    )
}


_LOOKED_AT = 50  # folders in one that has no layout


@dataclass(frozen=True)
class Recognition:
    """What a folder looks like: the layout, its parts that are there, and those that are needed and missing."""

    layout: type[Layout]
    root: Path
    found: dict[str, Path]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.layout.name


def recognise(path: str | Path) -> Recognition | None:
    """Which layout a folder, or the folder of a file, has; None for none.

    The layout is taken of which the greatest share of its signs is there: at least half of them, so that half a
    download is recognised, and `missing` says what it lacks.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"Expected {root} to be a folder or a file, but got nothing there. Check the path.")
    file = None if root.is_dir() else root
    root = root if file is None else root.parent
    best: Recognition | None = None
    score = (0.0, 0)
    for layout in LAYOUTS.values():
        found = {key: place for key, part in layout.parts.items() if (place := part.find(root, file)) is not None}
        if file is not None and file not in found.values():
            continue
        signs = [key for key, part in layout.parts.items() if part.sign]
        present = sum(key in found for key in signs)
        reached = (present / len(signs), len(found))
        if reached > score and 2 * present >= len(signs) and layout.fits(found):
            missing = tuple(key for key, part in layout.parts.items() if part.needed and key not in found)
            best, score = Recognition(layout, root, found, missing), reached
    return best


def unknown(path: str | Path, advice: str) -> str:
    """The message about a path that has no layout: what lies there, where that is known, else `advice`."""
    if told := told_of(path):
        return f"Expected {path} to have the layout of a dataset (agm data layouts), but got another. {told}"
    if Path(path).suffix in (".npz", ".pt"):
        advice = f"Where it holds arrays of your own, agm train --dataset {path} says what it reads."
    return f"Expected {path} to have the layout of one of {', '.join(LAYOUTS)}, but got another. {advice}"


def told_of(path: str | Path) -> str:
    """What lies at a path that has no layout, and what to do about it; "" where nothing is known."""
    path = Path(path)
    inside = [
        f"{folder.name} ({found.name})"
        for folder in (sorted(islice(path.iterdir(), _LOOKED_AT)) if path.is_dir() else ())
        if folder.is_dir() and (found := recognise(folder)) is not None and not found.missing
    ]
    if inside:
        return f"Folders in it have one: {', '.join(inside[:5])}. Give one of them."
    return hint(path)


def open_layout(path: str | Path, name: str | None = None, *, skip_bad: bool = False, **options: Any) -> Layout:
    """Open a dataset in the layout in which it lies on the disk.

    Args:
        path: its folder, or one file of it.
        name: of the layout; recognised by default.
        skip_bad: leave bad samples out and list them, instead of an error.
        **options: of the layout, such as `audio="fbank"` and `frames=2`.

    Example:
        >>> data = open_layout("CREMA-D", "crema-d", audio="fbank", frames=2)  # doctest: +SKIP
        >>> data.read(data.arrange("actors")["train"][0])["audio"].shape  # doctest: +SKIP
        torch.Size([1, 1024, 128])

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: no layout is recognised, the name is unknown, or the layout's own errors.
    """
    if name is None:
        recognised = recognise(path)
        if recognised is None:
            raise ValueError(unknown(path, "Give the layout's name to learn what is missing."))
        name = recognised.name
    if name not in LAYOUTS:
        raise ValueError(f"Expected the name of a layout ({', '.join(LAYOUTS)}), but got {name!r}.")
    return LAYOUTS[name](path, skip_bad=skip_bad, **options)
