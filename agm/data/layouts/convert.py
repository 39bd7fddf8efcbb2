"""One safe file of a dataset: `agm data convert`, and the same in memory."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from agm.data._files import PARTIAL, memory
from agm.data._npz import write_npz
from agm.data._targets import stored_target
from agm.data.layouts.layout import Layout, Sample
from agm.data.multimodal import MultimodalData, Split

__all__ = ["Conversion", "convert", "load_layout"]

_SPLITS = ("train", "validation", "test")
Progress = Callable[[int, int], object]


@dataclass
class Conversion:
    """What a conversion wrote, and what it left out.

    Args:
        path: the file.
        counts: samples by split.
        bad: samples that did not decode, by reason: those of `skip_bad`.
        left_out: samples of splits that such a file has no name for ("dep").
    """

    path: Path
    counts: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0


def convert(
    layout: Layout,
    path: str | os.PathLike[str],
    *,
    scheme: str = "clean",
    splits: Mapping[str, Sequence[Sample]] | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Decode a dataset once, by the transforms for evaluation, into one `.npz` that `agm.data.load` reads.

    Images stay bytes, with their mean and deviation beside them. Sample by sample, so that no more than one is in
    memory. The file appears when it is complete; what has been written until then lies beside it, and goes with an
    error.

    Args:
        layout: the dataset.
        path: the file to write, ending in .npz.
        scheme: of the splits, one of `layout.schemes`.
        splits: train, validation and test in the place of a scheme, as `split_by_lists` makes them.
        skip_bad: leave out samples that do not decode, and count them.
        progress: called with the number of samples that are done, and all.

    Raises:
        ModuleNotFoundError: a package that decodes is not installed.
        OSError: something cannot be read or written.
        ValueError: another ending, a sample that does not decode, samples of unequal shape, or a split without any.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Expected `path` to end in .npz, but got {path.name!r}. Add the ending.")
    if splits is not None:
        scheme = "lists"
    splits = dict(layout.arrange(scheme) if splits is None else splits)
    made = Conversion(path, left_out=len(splits.pop("dep", [])))
    total = sum(map(len, splits.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        columns: dict[str, _Column] = {}
        taken: list[Sample] = []
        parts: list[str] = []
        for split, sample, values in _decoded(layout, splits, skip_bad, made, progress, total):
            if not columns:
                _require_room(path, total * sum(value.numel() * value.element_size() for value in values.values()))
                columns = {name: stack.enter_context(_column(path, value)) for name, value in values.items()}
            for name, value in values.items():
                columns[name].append(name, sample, value)
            taken.append(sample)
            parts.append(split)
        made.counts = dict(Counter(parts))
        _require_splits(layout, made)
        arrays: dict[str, Any] = {}
        for name, column in columns.items():
            arrays[name] = column.array()
            if name in layout.pictures:
                mean, deviation = (np.array(part).reshape(-1, 1, 1) for part in layout.pictures[name])
                arrays[f"{name}.scale"], arrays[f"{name}.offset"] = 1 / (255 * deviation), -mean / deviation
        arrays |= stored_target(layout.targets(taken))
        arrays["split"] = np.array(parts)
        arrays["class_names"] = np.array(layout.class_names)
        arrays["meta.name"] = np.array([sample.name for sample in taken])
        arrays["meta.layout"] = np.array([layout.name, scheme, *(f"{k}={v}" for k, v in layout.chosen.items())])
        write_npz(path, arrays, fast=True)
    return made


def load_layout(layout: Layout, *, scheme: str = "clean", skip_bad: bool = False) -> MultimodalData:
    """The dataset in memory, by the transforms for evaluation.

    Raises:
        As `convert`; ValueError too where it is larger than this machine's memory.
    """
    splits = layout.arrange(scheme)
    splits.pop("dep", None)
    made = Conversion(Path())
    inputs: dict[str, dict[str, list[torch.Tensor]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    taken: dict[str, list[Sample]] = {}
    total, size = sum(map(len, splits.values())), 0
    for split, sample, values in _decoded(layout, splits, skip_bad, made, None, total):
        if not size:
            size = total * sum(
                value.numel() * (4 if value.dtype == torch.uint8 else value.element_size()) for value in values.values()
            )
            if size > memory():
                raise ValueError(
                    f"Expected {layout.title} to fit into memory, but got {size} bytes. "
                    "Read it by agm.data.layouts.LayoutDataset in a loop of your own."
                )
        for name, value in values.items():
            _require_shape(name, sample, value, shapes.setdefault(name, tuple(value.shape)))
            inputs.setdefault(split, {}).setdefault(name, []).append(layout.finished(name, value))
        taken.setdefault(split, []).append(sample)
    made.counts = {split: len(samples) for split, samples in taken.items()}
    _require_splits(layout, made)
    parts = {
        split: Split(
            {name: torch.stack(rows) for name, rows in inputs[split].items()},
            layout.targets(samples),
        )
        for split, samples in taken.items()
    }
    return MultimodalData(layout.name, parts["train"], parts["test"], parts.get("validation"), layout.class_names)


def _decoded(
    layout: Layout,
    splits: Mapping[str, Sequence[Sample]],
    skip_bad: bool,
    made: Conversion,
    progress: Progress | None,
    total: int,
) -> Iterator[tuple[str, Sample, dict[str, torch.Tensor]]]:
    done = 0
    for split in _SPLITS:
        for sample in splits.get(split, []):
            try:
                values = layout.read(sample, raw=True)
            except (OSError, ValueError) as error:
                if not skip_bad:
                    raise
                made.bad.append((sample.name, str(error)))
            else:
                yield split, sample, values
            done += 1
            if progress is not None:
                progress(done, total)


def _require_room(path: Path, size: int) -> None:
    """For the rows, and for the file that they are copied to."""
    free = shutil.disk_usage(path.parent).free
    if 2 * size > free:
        raise ValueError(
            f"Expected {path.parent} to have room for {2 * size} bytes while {path.name} is written, but got {free}. "
            "Make room, choose smaller images (--set size=112), or read the set where it lies by "
            "agm.data.layouts.LayoutDataset."
        )


def _require_splits(layout: Layout, made: Conversion) -> None:
    for split in ("train", "test"):
        if not made.counts.get(split):
            raise ValueError(
                f"Expected samples of {layout.title} in train and in test, but got none in {split}"
                f"{f' ({len(made.bad)} did not decode)' if made.bad else ''}. Are the lists complete?"
            )


def _require_shape(name: str, sample: Sample, value: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(
            f"Expected `{name}` to have the shape {shape} in all samples, but got {tuple(value.shape)} in "
            f"{sample.name!r}. Stored front ends of two kinds? Compute them alike."
        )


class _Column:
    """Rows of one modality, in a file that goes when they have been copied."""

    def __init__(self, file: IO[bytes], first: torch.Tensor) -> None:
        self.file, self.shape, self.rows = file, tuple(first.shape), 0
        self.dtype = first.numpy().dtype

    def append(self, name: str, sample: Sample, value: torch.Tensor) -> None:
        _require_shape(name, sample, value, self.shape)
        self.file.write(np.ascontiguousarray(value.numpy(), dtype=self.dtype).data)
        self.rows += 1

    def array(self) -> np.ndarray:
        self.file.flush()
        return np.memmap(self.file.name, self.dtype, "r", shape=(self.rows, *self.shape))


@contextmanager
def _column(path: Path, first: torch.Tensor) -> Iterator[_Column]:
    """Beside the file that is written, where there is room for it; nobody can foresee its name."""
    prefix = f".{path.name[:60]}.{secrets.token_hex(4)}."
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, suffix=PARTIAL) as file:
        yield _Column(file, first)
