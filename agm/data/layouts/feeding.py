"""Batches that are there when a device wants them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from agm.data.layouts.dataset import collate

__all__ = ["Feed", "feed"]

Batch = tuple[dict[str, Tensor], Tensor, Tensor]


class Feed:
    """Batches (modality -> (B, ...), (B,) int64 labels, (B,) int64 places) on a device; made by `feed`.

    On a GPU the next batch is copied by a stream of its own while the last one is worked on, and images become floats
    there: a quarter of the bytes travels.

    Attributes:
        loader: torch's loader beneath.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device, dtype: torch.dtype) -> None:
        self.loader, self.device, self.dtype = loader, device, dtype

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.device.type != "cuda":
            for batch in self.loader:
                if batch is not None:
                    yield self._finished(batch)
            return
        stream = torch.cuda.Stream(self.device)
        ready: tuple[Batch, torch.cuda.Event] | None = None
        for batch in self.loader:
            if batch is None:
                continue
            with torch.cuda.stream(stream):
                following = self._finished(batch), stream.record_event()
            if ready is not None:
                yield self._handed_over(*ready)
            ready = following
        if ready is not None:
            yield self._handed_over(*ready)

    def set_epoch(self, epoch: int) -> None:
        """Another order, and other crops, mirrors and frames, from now on."""
        for part in (self.loader.dataset, self.loader.sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def _finished(self, batch: Any) -> Batch:
        inputs, target, places = batch
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        finish = getattr(self.loader.dataset, "finish", None)
        if finish is not None:
            inputs = finish(inputs, self.dtype)
        return inputs, target.to(self.device, non_blocking=True), places

    def _handed_over(self, batch: Batch, event: torch.cuda.Event) -> Batch:
        """The batch, once it is there; its memory is not used again before this stream is done with it."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for value in (*batch[0].values(), batch[1]):
            value.record_stream(current)
        return batch


def feed(
    data: Dataset[Any],
    batch_size: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    shuffle: bool = False,
    drop_last: bool = False,
    workers: int | None = None,
    prefetch: int = 4,
    seed: int = 0,
) -> Feed:
    """A loader that keeps a device fed: workers that live, pinned memory, batches ahead, floats made on the device.

    Args:
        data: a `LayoutDataset` (with `raw=True` images travel as bytes), or a stream of
            `agm.data.layouts.streaming`.
        batch_size: samples a batch.
        device: where batches go.
        dtype: of floats there, such as torch.bfloat16.
        shuffle: an order of its own each epoch, which `seed` and `set_epoch` decide; not for streams, which have
            their own.
        drop_last: leave out a last batch that is smaller.
        workers: processes that decode; by default as many as this process may use cores, less one, at most 16.
        prefetch: batches that each worker makes ahead.
        seed: of the order.

    Example:
        >>> data = LayoutDataset(layout, layout.arrange()["train"], training=True, raw=True)  # doctest: +SKIP
        >>> loader = feed(data, 64, device="cuda", dtype=torch.bfloat16, shuffle=True)  # doctest: +SKIP
        >>> for epoch in range(epochs):  # doctest: +SKIP
        ...     loader.set_epoch(epoch)
        ...     for inputs, target, _ in loader:
        ...         logits = model(**inputs, target=target)

    Raises:
        ValueError: an argument outside its range, or `shuffle` for a stream.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("prefetch", prefetch, 1), ("workers", workers or 0, 0)):
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be {least} or more, but got {value}.")
    streamed = isinstance(data, IterableDataset)
    if streamed and shuffle:
        raise ValueError(
            "Expected `shuffle` to be False for a stream, but got True. Streams have an order of their own."
        )
    count = min(16, max(0, _cores() - 1)) if workers is None else workers
    place = torch.device(device)
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size,
        sampler=_Shuffled(len(data), seed) if shuffle else None,  # type: ignore[arg-type]  # no stream has come here
        num_workers=count,
        collate_fn=collate,
        pin_memory=place.type == "cuda",
        drop_last=drop_last,
        persistent_workers=count > 0,
        prefetch_factor=prefetch if count else None,
    )
    return Feed(loader, place, dtype)


class _Shuffled(Sampler[int]):
    """Every place once, in an order that seed and epoch decide."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        digest = hashlib.sha256(f"{self.seed} {self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return iter(torch.randperm(self.length, generator=generator).tolist())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
