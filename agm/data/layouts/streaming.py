"""Samples one after the other, of sets that nobody lists first: shards, and streams of Hugging Face."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from agm.data.layouts.choices import Choice
from agm.data.layouts.dataset import Item
from agm.data.layouts.extras import needed
from agm.data.layouts.fields import field_options
from agm.data.layouts.hugging_face import RowDecoder
from agm.data.layouts.lists import read_rows
from agm.data.layouts.pictures import normalised
from agm.data.layouts.shards import decode_entries, label_in, shards_of

__all__ = ["Source", "Streamed", "stream_rows", "stream_shards"]

Decoded = tuple[dict[str, torch.Tensor], int]


class Source(ABC):
    """Where a stream comes from; it may be copied into other processes."""

    divided = False  # whether `rows` gives each worker of a loader its own part already

    @abstractmethod
    def rows(self, epoch: int) -> Iterator[Any]:
        """What is decoded; begun once an epoch in each worker."""

    @abstractmethod
    def decode(self, row: Any, generator: torch.Generator) -> Decoded:
        """Modality -> tensor of a row, images as bytes, and its class index."""


class Streamed(IterableDataset[Item]):
    """Samples as a source gives them: (modality -> tensor, class index, number within this worker).

    Each worker of a loader decodes its own part. Images stay bytes; `finish` makes floats of a batch.

    Args:
        source: made by `stream_shards` or `stream_rows`.
        seed: of random crops.
    """

    def __init__(self, source: Source, *, seed: int = 0) -> None:
        self.source, self.seed = source, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        place, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch = int(self._epoch)
        rows = self.source.rows(epoch)
        if not self.source.divided:
            rows = islice(rows, place, None, workers)
        digest = hashlib.sha256(f"{self.seed} {epoch} {place} {workers}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        for number, row in enumerate(rows):
            yield (*self.source.decode(row, generator), number)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order and other crops from now on."""
        self._epoch.fill_(epoch)

    def finish(self, inputs: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """Floats of a batch, where it lies."""
        made = {}
        for name, value in inputs.items():
            value = normalised(value) if value.dtype == torch.uint8 else value  # no others than images are bytes
            made[name] = value.to(dtype) if value.is_floating_point() else value
        return made


def stream_shards(
    path: str | Path,
    split: str = "train",
    *,
    training: bool = False,
    buffer: int = 1000,
    seed: int = 0,
    label: str = "label",
    **options: Any,
) -> Streamed:
    """Read WebDataset's shards from one end to the other, by the package webdataset.

    In training their order is drawn anew each epoch, and samples are drawn from a buffer. A loader has as many workers
    as there are shards, at most; each process of a group reads its own.

    Args:
        path: the folder of the shards; classes.txt in it names the classes where labels are names.
        split: "train", "validation" or "test".
        training: with random orders and crops.
        buffer: samples that one is drawn from.
        seed: of both.
        label: key of the label in .json entries.
        **options: of `agm.data.layouts.fields.field_options`.

    Example:
        >>> data = stream_shards("shards", training=True, audio="fbank")  # doctest: +SKIP
        >>> loader = feed(data, 64, device="cuda", dtype=torch.bfloat16)  # doctest: +SKIP

    Raises:
        ModuleNotFoundError: webdataset is not installed.
        ValueError: there are no shards of this split, or an option is none.
    """
    needed("webdataset")
    root = Path(path).resolve()  # absolute, so that no name can be taken for a command ("pipe:")
    found = shards_of(root)
    shards = [str(shard) for shard in found.get(split, found.get("", []) if split == "train" else [])]
    if not shards:
        raise ValueError(f"Expected {root} to hold shards of {split} ({split}-000000.tar ...), but got none.")
    chosen = _checked(field_options(), options)
    names = _names_in(root)

    return Streamed(_Shards(shards, names, chosen, label, training, buffer, seed), seed=seed)


@dataclass
class _Shards(Source):
    shards: list[str]
    names: list[str]
    options: dict[str, Any]
    label: str
    training: bool
    buffer: int
    seed: int
    divided = True

    def rows(self, epoch: int) -> Iterator[Any]:
        webdataset = needed("webdataset")
        pipeline = webdataset.WebDataset(
            self.shards,
            shardshuffle=len(self.shards) if self.training else False,
            detshuffle=self.training,
            seed=self.seed + epoch,
            nodesplitter=webdataset.split_by_node,
            workersplitter=webdataset.split_by_worker,
            empty_check=False,
        )
        if self.training:
            pipeline = pipeline.shuffle(self.buffer, seed=self.seed + epoch)
        return iter(pipeline)

    def decode(self, row: Mapping[str, Any], generator: torch.Generator) -> Decoded:
        place = f"{row.get('__key__')} in {row.get('__url__')}"
        entries = {ending: content for ending, content in row.items() if isinstance(content, bytes)}
        index = _index(label_in(entries, self.label, place), self.names, place)
        return decode_entries(entries, self.options, place, self.training, generator), index


def stream_rows(
    table: Any,
    *,
    columns: Sequence[str] = (),
    label: str = "",
    training: bool = False,
    seed: int = 0,
    **options: Any,
) -> Streamed:
    """Samples of an `IterableDataset` of Hugging Face, such as `load_dataset(..., streaming=True)["train"]`.

    Shuffle it by its own `shuffle`. Labels are its class labels, or whole numbers.

    Args:
        table: the stream; it has to know its features.
        columns: names of the modalities; by default all that can be.
        label: the column of labels; found by default.
        training: with random crops.
        seed: of crops.
        **options: of `agm.data.layouts.fields.field_options`.

    Raises:
        ValueError: the features are unknown, a column is not there, or an option is none.
    """
    if getattr(table, "features", None) is None:
        raise ValueError("Expected `table` to know its features, but got none. Give them: table.cast(features).")
    decoder = RowDecoder(table.features, columns, label)
    chosen = _checked(field_options(), options)
    undecoded = decoder.undecoded(table.select_columns([*decoder.kinds, decoder.label]))

    return Streamed(_Rows(undecoded, decoder, chosen, training), seed=seed)


class _Rows(Source):
    def __init__(self, table: Any, decoder: RowDecoder, options: dict[str, Any], training: bool) -> None:
        self.table, self.decoder, self.options, self.training = table, decoder, options, training
        self.divided = isinstance(table, IterableDataset)  # then it shares its own rows out to workers

    def rows(self, epoch: int) -> Iterator[Any]:
        self.table.set_epoch(epoch)
        return iter(self.table)

    def decode(self, row: Mapping[str, Any], generator: torch.Generator) -> Decoded:
        values = self.decoder.decode(row, self.options, "a row of the stream", self.training, generator)
        return values, int(row[self.decoder.label])


def _checked(choices: Mapping[str, Choice], options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in choices:
            raise ValueError(f"Expected options ({', '.join(choices)}), but got {name!r}. Leave it out.")
    return {name: choice.checked(name, options.get(name)) for name, choice in choices.items()}


def _names_in(root: Path) -> list[str]:
    for name in ("classes.txt", "class_names.txt"):
        if (root / name).is_file():
            return [" ".join(cells) for _, cells in read_rows(root / name, "\n")]
    return []


def _index(label: str | None, names: Sequence[str], place: str) -> int:
    if label is not None and label in names:
        return names.index(label)
    if label is not None and label.isdigit() and (not names or int(label) < len(names)):
        return int(label)
    raise ValueError(
        f"Expected {place} to have a class index or one of the names in classes.txt as its label, but got {label!r}."
    )
