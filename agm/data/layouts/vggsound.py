"""VGGSound: ten seconds of 309 kinds of sounds and what makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from agm.data.layouts.audio_visual import AudioVisual, SoundFolder
from agm.data.layouts.choices import Choice, sound_options, visual_options
from agm.data.layouts.layout import Part
from agm.data.layouts.lists import names_in, read_rows
from agm.data.layouts.pictures import choose_of_ten

__all__ = ["VggSound"]

_FRAMES = ("frames/{}/Image-01-FPS", "{}_img/Image-01-FPS", "visual/{}", "{}/visual", "frames/{}", "{}")
_SOUNDS = ("audio/{}", "{}_wav", "{}/audio", "audio")


class VggSound(AudioVisual):
    """vggsound.csv (VIDEO,START,LABEL,SPLIT) with frames and sounds named VIDEO_START, START as it is or in six digits.

    Classes are sorted by name over the whole list, so that they are the same everywhere: published loaders number them
    as they appear among the files that a machine has. Clips with three frames or fewer are left out.
    """

    name = "vggsound"
    title = "VGGSound"
    source = "robots.ox.ac.uk/~vgg/data/vggsound; annotations CC BY 4.0 (YouTube)"
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the list, a tenth of train held out for validation",
        "authors": "the list, chosen on test as published",
    }
    options: ClassVar[Mapping[str, Choice]] = {**sound_options("stft-16k"), **visual_options(3, "lower-middle")}
    parts: ClassVar[Mapping[str, Part]] = {
        "list": Part("the list of clips", ("vggsound.csv", "data/vggsound.csv", "annotations/vggsound.csv")),
        **{
            f"{split}_{kind}": Part(f"{what} of {split}", tuple(form.format(split) for form in forms), sign=False)
            for split in ("train", "test")
            for kind, what, forms in (("visual", "frames", _FRAMES), ("audio", "sounds", _SOUNDS))
        },
    }
    fewest_frames = 4

    def _scan(self) -> None:
        path = self.place("list")
        rows = [cells for _, cells in read_rows(path, columns=4)]
        names = sorted({cells[2] for cells in rows})
        self.class_names = tuple(names)
        places = {name: index for index, name in enumerate(names)}
        audio = {split: SoundFolder(self.place(f"{split}_audio")) for split in ("train", "test")}
        visual = {split: names_in(self.place(f"{split}_visual")) for split in ("train", "test")}
        for video, start, label, split, *_rest in rows:
            if split not in audio:
                self.skip(video, f"split {split!r}, which is neither train nor test", path, bad="Correct the list.")
                continue
            clip = f"{video}_{start}"
            if not self.safe(clip, path):
                continue
            if start.isdigit() and audio[split].find(clip) is None:
                clip = f"{video}_{int(start):06d}"
            # Some extractors leave the ending of the video in the folder's name.
            folders = (f"{video}_{start}", clip, f"{clip}.mp4", f"{video}_{start}.mp4")
            folder = self.place(f"{split}_visual") / next((name for name in folders if name in visual[split]), clip)
            self.pair(clip, split, places[label], audio[split], folder, video)

    def choose(self, number: int, training: bool, generator: torch.Generator | None) -> list[int]:
        options = self.chosen
        return choose_of_ten(number, options["frames"], options["pick"], training=training, generator=generator)
