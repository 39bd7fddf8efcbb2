"""AVE, segments: 4,143 clips of ten seconds, each second of one of 28 events or of none, as stored features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, one_of
from agm.data.layouts.h5_files import H5Rows
from agm.data.layouts.layout import Layout, Part, Sample

__all__ = ["EVENTS", "Ave", "event_shares"]

BACKGROUND = 28
EVENTS = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)


def event_shares(labels: np.ndarray) -> np.ndarray:
    """Of each clip, 1/k at the k segments with its event and 0 at the others: the target of AGM's similarity loss.

    Args:
        labels: (N, T) class indices; the largest possible one, 28, is the background. A clip's event is its least one.

    Returns:
        (N, T) float32, rows that sum to 1; 1/T throughout for a clip without an event, as AGM's loader has it.
    """
    labels = np.asarray(labels)
    present = (labels == labels.min(axis=1, keepdims=True)).astype(np.float32)
    return present / present.sum(axis=1, keepdims=True)


class Ave(Layout):
    """visual_feature.h5 (N, 10, 7, 7, 512), audio_feature.h5 (N, 10, 128), labels and orders; sizes are the files'.

    With `unit=segments` a sample is a second: "audio" (128,), "visual" (49, 512), 29 classes, the last the background.
    With `unit=clips` it is a clip with the class of its event: "audio" (10, 128), "visual" (490, 512), 28 classes;
    clips that are background throughout are left out. `visual=grid` leaves features of frames as they are stored,
    (7, 7, 512), which no network of `agm train` reads: the features come last.
    """

    name = "ave"
    title = "AVE (features)"
    source = "github.com/YapengTian/AVE-ECCV18; of AudioSet (YouTube)"
    modalities = ("audio", "visual")
    schemes: ClassVar[Mapping[str, str]] = {"clean": "the set's own train, validation and test", "authors": "the same"}
    options: ClassVar[Mapping[str, Choice]] = {
        "unit": one_of("segments", "clips", help="what a sample is: a second, or a clip"),
        "visual": one_of(
            "places", "mean", "grid", help="features of a frame: steps of a sequence, their mean, or as they are stored"
        ),
    }
    parts: ClassVar[Mapping[str, Part]] = {
        "visual": Part(
            "features of the frames", ("visual_feature.h5", "data/visual_feature.h5"), advice="Get them all."
        ),
        "audio": Part("features of the sound", ("audio_feature.h5", "data/audio_feature.h5")),
        "labels": Part("labels of the segments", ("right_labels.h5", "labels.h5", "data/right_labels.h5")),
        **{
            f"{split}_order": Part(f"the order of {split}", (f"{split}_order.h5", f"data/{split}_order.h5"))
            for split in ("train", "val", "test")
        },
    }

    def _scan(self) -> None:
        labels = np.asarray(H5Rows(self.place("labels"), "avadataset").all())
        self._rows = {name: H5Rows(self.place(name), "avadataset") for name in ("audio", "visual")}
        for rows in self._rows.values():
            if labels.ndim != 3 or labels.shape[2] != BACKGROUND + 1 or rows.shape[:2] != labels.shape[:2]:
                raise ValueError(
                    f"Expected {rows.path} to have rows (N, T, ...) and {self.place('labels')} labels (N, T, 29), "
                    f"but got {rows.shape} and {labels.shape}. Are they of one set?"
                )
        if len(shape := self._rows["visual"].shape) != 5:
            raise ValueError(
                f"Expected {self.place('visual')} to hold features of places in frames, (N, T, H, W, D), "
                f"but got {shape}. Is it the right file?"
            )
        self.segments = labels.argmax(axis=2)  # (N, T)
        clips = self.chosen["unit"] == "clips"
        self.class_names = EVENTS if clips else (*EVENTS, "background")
        self.notes.append("class names are in the order of the features' labels, as the authors list them")
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
            path = self.place(f"{short}_order")
            order = H5Rows(path, "order").all()
            for clip in order.reshape(-1).tolist():
                if not (0 <= clip < len(labels) and clip == int(clip)):
                    self.skip(f"clip {clip}", "a number of no clip of the features", path, bad="Is it of the same set?")
                    continue
                self._add(int(clip), split, clips)

    def _add(self, clip: int, split: str, clips: bool) -> None:
        segments = self.segments[clip]
        if not clips:
            for second, label in enumerate(segments.tolist()):
                row = clip * len(segments) + second
                self.samples.append(Sample(f"{clip}:{second}", split, label, group=str(clip), row=row))
            return
        events = segments[segments != BACKGROUND]
        if not len(events):
            self.skip(f"clip {clip}", "no event, all of it is background", self.place("labels"))
            return
        self.samples.append(Sample(str(clip), split, int(np.bincount(events).argmax()), group=str(clip), row=clip))

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        made = {}
        for name, rows in self._rows.items():
            if self.chosen["unit"] == "clips":
                values = rows[sample.row]
            else:
                clip, second = divmod(sample.row, rows.shape[1])
                values = rows[clip, second]
            if name == "visual":
                values = self._placed(values)
            if not np.isfinite(values).all():
                raise ValueError(f"Expected {rows.path} to be finite, but got NaN or infinity in clip {sample.group}.")
            made[name] = torch.from_numpy(values)
        return made

    def _placed(self, values: np.ndarray) -> np.ndarray:
        """(..., 7, 7, D), by the option: (49 ..., D) one step a place, (..., D), or unchanged."""
        if self.chosen["visual"] == "mean":
            return values.mean(axis=(-3, -2))
        return values.reshape(-1, values.shape[-1]) if self.chosen["visual"] == "places" else values
