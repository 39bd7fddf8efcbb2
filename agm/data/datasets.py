"""Datasets by name or by path."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from agm.data.arrays import load_arrays
from agm.data.av_digits import load_av_digits
from agm.data.avt_digits import load_avt_digits
from agm.data.multimodal import MultimodalData

__all__ = ["available", "load"]


@dataclass(frozen=True)
class _File:
    """A file of `agm.data.builders` that comes with the package.

    Args:
        name: of the dataset.
        modalities: those that are taken where nobody asks for others.
    """

    name: str
    modalities: tuple[str, ...]

    def __call__(self, modalities: Sequence[str] | None) -> MultimodalData:
        file = resources.files("agm.data").joinpath(self.name.replace("-", "_") + ".npz")
        with resources.as_file(file) as path:
            return load_arrays(path, name=self.name, modalities=modalities or self.modalities)


def _digits(load_all: Callable[[], MultimodalData]) -> Callable[[Sequence[str] | None], MultimodalData]:
    return lambda modalities: load_all() if modalities is None else load_all().select(modalities)


_BUNDLED: dict[str, Callable[[Sequence[str] | None], MultimodalData]] = {
    "av-digits": _digits(load_av_digits),
    "avt-digits": _digits(load_avt_digits),
    **{
        file.name: file
        for file in (
            _File("clipart", ("image", "title", "keywords")),
            _File("emoji", ("image", "name_en")),
            _File("mfeat", ("fou", "fac", "kar", "pix", "zer", "mor")),
            _File("basic-motions", ("accelerometer", "gyroscope")),
            _File("yeast", ("expression", "phylogeny")),
        )
    },
}


def available() -> tuple[str, ...]:
    """Names of the datasets that come with the package."""
    return tuple(_BUNDLED)


def load(name_or_path: str | os.PathLike[str], modalities: Sequence[str] | None = None) -> MultimodalData:
    """Load a dataset.

    Args:
        name_or_path: one of `available()`; or a folder, `.npz` or `.pt` file in the layout of `agm.data.arrays`; or a
            folder with a dataset of the field, of Hugging Face or of WebDataset (`agm.data.layouts`), which is decoded
            into memory. A known name wins over a folder of that name ("./av-digits" is the folder).
        modalities: which to take, in this order; by default all, and of emoji the picture and the English name.

    Raises:
        FileNotFoundError: the path does not exist.
        ModuleNotFoundError: a package that decodes is not installed.
        ValueError: an unknown name or modality, or a file that is not as the layout says.

    Example:
        >>> agm.data.load("emoji", modalities=("image", "name_ja")).modalities
        ('image', 'name_ja')
    """
    name = os.fspath(name_or_path)
    if name in _BUNDLED:
        return _BUNDLED[name](modalities)
    looks_like_path = os.path.dirname(name) or os.path.splitext(name)[1]
    if not looks_like_path and not os.path.exists(name):
        near = [name + end for end in (".npz", ".pt") if os.path.exists(name + end)]
        near += difflib.get_close_matches(name, _BUNDLED, n=1)
        raise ValueError(
            f"Expected `name_or_path` to be a known dataset ({', '.join(_BUNDLED)}) "
            f"or the path of a folder, .npz or .pt file, but got {name!r}. "
            f"{f'Did you mean {near[0]}?' if near else 'Check the spelling.'}"
        )
    layout = _layout_of(Path(name))
    if layout is None:
        return load_arrays(name, modalities=modalities)
    return layout if modalities is None else layout.select(modalities)


def _layout_of(path: Path) -> MultimodalData | None:
    """The dataset of a folder that has a layout of the field (agm.data.layouts), in memory; None for other paths."""
    arrays = path.suffix in (".npz", ".pt") or any((path / f"target{end}").exists() for end in (".npy", ".pt", ".txt"))
    if arrays or not path.exists():
        return None
    from agm.data.layouts import load_layout, open_layout, recognise
    from agm.data.layouts.registry import told_of, unknown

    if path.is_dir() and recognise(path) is not None:
        return load_layout(open_layout(path))
    if told_of(path):
        raise ValueError(unknown(path, ""))
    return None
