"""What a folder holds, in words: `agm data inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agm.data.layouts.downloads import hint
from agm.data.layouts.layout import Layout
from agm.data.layouts.registry import LAYOUTS, recognise, unknown
from agm.data.multimodal import Task

__all__ = ["Inspection", "inspect"]


@dataclass
class Inspection:
    """What `inspect` found.

    Args:
        name, title, source: of the layout.
        found: what is there, and where.
        missing: parts that are not there: what, where they were looked for, and what to do.
        complete: whether all that is needed is there.
        advice: what to do where it is not, by what lies there instead.
        splits: scheme -> split -> samples.
        classes: names in the order of their indices, and samples; of a number its name.
        task: "classes" or "numbers".
        skipped: why samples are left out -> how many, and the first of them with its file.
        notes: facts to know.
        shapes: modality -> shape and dtype of the first sample; or why it could not be decoded.
        undecoded: samples that do not decode (only with `decode`): name and why.
    """

    name: str
    title: str
    source: str
    found: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    complete: bool = True
    advice: str = ""
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: list[tuple[str, int]] = field(default_factory=list)
    task: Task = "classes"
    skipped: dict[str, tuple[int, str, Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shapes: dict[str, str] = field(default_factory=dict)
    undecoded: list[tuple[str, str]] | None = None

    @property
    def samples(self) -> int:
        return sum(number for _, number in self.classes)


def inspect(
    path: str | Path,
    name: str | None = None,
    *,
    decode: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Inspection:
    """Recognise the layout of a folder and count what is in it.

    Args:
        path: the folder, or one file of it.
        name: of the layout; recognised by default.
        decode: decode every sample, to find those that cannot be.
        options: of the layout.
        progress: with `decode`, called with the number of samples that are done, and all.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: no layout is recognised, or a list cannot be read.
    """
    layout_class = _class_of(path, name)
    file = None if Path(path).is_dir() else Path(path)
    root = Path(path) if file is None else file.parent
    made = Inspection(layout_class.name, layout_class.title, layout_class.source)
    for part in layout_class.parts.values():
        place = part.find(root, file)
        if place is not None:
            made.found[part.what] = place
        elif part.needed:
            made.missing.append(f"{part.what} ({' or '.join(part.paths)}). {part.advice}".strip())
            made.complete = False
    if not made.complete:
        made.advice = hint(root, layout_class.name)
        return made
    layout = layout_class(path, skip_bad=True, **(options or {}))
    made.splits = {
        scheme: {split: len(samples) for split, samples in layout.arrange(scheme).items()} for scheme in layout.schemes
    }
    counts = Counter(sample.label for sample in layout.samples)
    made.task = layout.task
    made.classes = [(label, counts[index]) for index, label in enumerate(layout.class_names)]
    made.notes = layout.notes
    for skipped in layout.skipped:
        number, first, file = made.skipped.get(skipped.reason, (0, skipped.name, skipped.file))
        made.skipped[skipped.reason] = (number + 1, first, file)
    _decode_first(layout, made)
    if decode:
        made.undecoded = _decode_all(layout, progress)
    return made


def _class_of(path: str | Path, name: str | None) -> type[Layout]:
    recognised = recognise(path)
    if name is None and recognised is not None:
        return recognised.layout
    if name in LAYOUTS:
        return LAYOUTS[name]
    if name is not None:
        raise ValueError(f"Expected the name of a layout ({', '.join(LAYOUTS)}), but got {name!r}.")
    raise ValueError(unknown(path, "Name the layout with --layout to learn what is missing."))


def _decode_first(layout: Layout, made: Inspection) -> None:
    try:
        values = layout.read(layout.samples[0])
    except (ModuleNotFoundError, OSError, ValueError) as error:
        made.notes.append(f"the first sample does not decode: {error}")
    else:
        made.shapes = {
            name: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for name, value in values.items()
        }


def _decode_all(layout: Layout, progress: Callable[[int, int], object] | None) -> list[tuple[str, str]]:
    failed = []
    for done, sample in enumerate(layout.samples, 1):
        try:
            layout.read(sample, raw=True)
        except (OSError, ValueError) as error:
            failed.append((sample.name, str(error)))
        if progress is not None:
            progress(done, len(layout.samples))
    return failed
