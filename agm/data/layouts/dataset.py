"""Samples of a layout for torch: decoded when they are asked for, by as many processes as a loader has."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from agm.data.layouts.layout import Layout, Sample

__all__ = ["LayoutDataset", "collate"]

Item = tuple[dict[str, Tensor], "int | Tensor", int]


class LayoutDataset(Dataset[Item | None]):
    """Samples of one split; item i is (modality -> tensor, class index or (1,) float32 number, i).

    Args:
        layout: where they lie.
        samples: some of `layout.arrange(scheme)`.
        training: with random crops, mirrors and frames where the published loaders have them.
        seed: of what is random. The same seed, epoch (`set_epoch`) and sample give the same values, whatever the
            number of workers and the order.
        raw: leave images as bytes, a quarter of the size; `finish` makes floats of them, on a GPU if they are there.
        skip_bad: None in the place of a sample that does not decode, which `collate` leaves out and `bad` counts.

    Example:
        >>> data = LayoutDataset(layout, layout.arrange()["train"], training=True)  # doctest: +SKIP
        >>> loader = DataLoader(data, 64, shuffle=True, num_workers=8, collate_fn=collate)  # doctest: +SKIP
    """

    def __init__(
        self,
        layout: Layout,
        samples: Sequence[Sample],
        *,
        training: bool = False,
        seed: int = 0,
        raw: bool = False,
        skip_bad: bool = False,
    ) -> None:
        self.layout, self.samples, self.training, self.seed = layout, list(samples), training, seed
        self.raw, self.skip_bad = raw, skip_bad
        # Shared with workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._bad = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item | None:
        sample = self.samples[index]
        try:
            values = self.layout.read(sample, training=self.training, generator=self._generator(sample), raw=self.raw)
        except (OSError, ValueError):
            if not self.skip_bad:
                raise
            self._bad[index] = True
            return None
        target = sample.label if sample.number is None else torch.tensor([sample.number], dtype=torch.float32)
        return values, target, index

    @property
    def targets(self) -> Tensor:
        """(N,) int64 class indices, or (N, 1) float32 numbers, without decoding anything."""
        return self.layout.targets(self.samples)

    @property
    def bad(self) -> int:
        """Samples that did not decode so far."""
        return int(self._bad.sum())

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops, mirrors and frames from now on."""
        self._epoch.fill_(epoch)

    def finish(self, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Floats of a batch that was read with `raw`, where it lies."""
        return {
            name: made.to(dtype) if (made := self.layout.finished(name, values)).is_floating_point() else made
            for name, values in inputs.items()
        }

    def _generator(self, sample: Sample) -> torch.Generator | None:
        if not self.training:
            return None
        text = f"{self.seed} {int(self._epoch)} {sample.split} {sample.name}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def collate(items: Sequence[Item | None]) -> Any:
    """A batch (modality -> (B, ...), targets, (B,) int64 places); of bad samples nothing, None if all are. Targets are
    (B,) int64 labels or (B, 1) float32 numbers.

    Raises:
        ValueError: samples of one modality differ in shape.
    """
    good = [item for item in items if item is not None]
    if not good:
        return None
    for name in good[0][0]:
        shapes = {tuple(item[0][name].shape) for item in good}
        if len(shapes) > 1:
            raise ValueError(
                f"Expected `{name}` to have one shape in a batch, but got {sorted(shapes)[:3]}. "
                "Stored front ends of two kinds? Compute them alike."
            )
    return default_collate(good)
