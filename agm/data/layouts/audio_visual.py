"""What the sets of clips with sound and frames have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from agm.data.layouts.layout import Layout, Sample
from agm.data.layouts.lists import names_in, safe_name
from agm.data.layouts.pictures import IMAGENET, Scale, choose_frames, list_frames, read_image
from agm.data.layouts.sound import SOUNDS, STORED, read_features

__all__ = ["AudioVisual"]


class AudioVisual(Layout):
    """Clips with a sound file and a folder of frames each.

    `read` gives "audio" (1, H, W) float32 by the front end of the option `audio`, and "visual" (T, 3, size, size).
    """

    modalities: tuple[str, ...] = ("audio", "visual")
    pictures: ClassVar[Mapping[str, Scale]] = {"visual": IMAGENET}
    fewest_frames: ClassVar[int] = 1

    def pair(
        self, name: str, split: str, label: int, audio: SoundFolder, frames: Path, group: str = "", extra: object = None
    ) -> bool:
        """Add a clip that has both files, else skip it; returns whether it was added."""
        sound = audio.find(name)
        if sound is None:
            self.skip(name, "no sound file", audio.folder)
        elif len(list_frames(frames)) < self.fewest_frames:
            self.skip(name, "no frames" if self.fewest_frames == 1 else "too few frames", frames)
        else:
            files = {"audio": sound, "visual": frames}
            self.samples.append(Sample(name, split, label, files, group, extra=extra))
            return True
        return False

    def safe(self, name: str, file: Path) -> bool:
        """Whether a name may be joined to a folder; else it is left out."""
        if safe_name(name):
            return True
        self.skip(name, "a name that leads out of the folder", file, bad="Do not use this list.")
        return False

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        options = self.chosen
        made = read_features(sample.files["audio"], options["audio"], options["padding"], options["resampler"])
        frames = self.frames(sample)
        if not frames:
            raise ValueError(f"Expected {sample.files['visual']} to hold frames, but got none. Extract them again.")
        places = self.choose(len(frames), training, generator)
        images = [
            read_image(frames[place], options["size"], training=training, generator=generator) for place in places
        ]
        return {"audio": torch.from_numpy(made), "visual": torch.stack(images)}

    def frames(self, sample: Sample) -> Sequence[Path]:
        """The frames of a clip, in order."""
        return list_frames(sample.files["visual"])

    def choose(self, number: int, training: bool, generator: torch.Generator | None) -> list[int]:
        """Places of the frames that are taken."""
        return choose_frames(number, self.chosen["frames"], self.chosen["pick"], training=training, generator=generator)


class SoundFolder:
    """A folder with one sound, or stored front end, a clip; read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = names_in(folder)

    def find(self, name: str) -> Path | None:
        """The file of a clip: a sound, or what a front end made of it."""
        for ending in (*SOUNDS, *STORED):
            if name + ending in self.names:
                return self.folder / (name + ending)
        return None
