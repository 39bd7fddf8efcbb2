"""BalancedAV (MM-Debiased): 30 classes, in which sound and picture help alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.audio_visual import SoundFolder
from agm.data.layouts.choices import Choice, sound_options, visual_options
from agm.data.layouts.layout import Layout, Part, Sample
from agm.data.layouts.lists import names_in, read_json, safe_name
from agm.data.layouts.pictures import IMAGENET, Scale, choose_of_ten, read_image
from agm.data.layouts.sound import read_features
from agm.data.layouts.stored import h5_images

__all__ = ["BalancedAV"]


class BalancedAV(Layout):
    """MM-Debiased.json, one HDF5 file of frames (JPEG) and one spectrogram a clip.

    `read` gives "audio" (1, H, W) and "visual" (3, 3, 224, 224) float32.
    """

    name = "balanced-av"
    title = "BalancedAV (MM-Debiased)"
    source = (
        "github.com/GeWu-Lab/Valuate-and-Enhance-Multimodal-Cooperation; of VGGSound, Kinetics and others (YouTube)"
    )
    modalities = ("audio", "visual")
    pictures: ClassVar[Mapping[str, Scale]] = {"visual": IMAGENET}
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the list, a tenth of training held out for validation",
        "authors": "the list, chosen on test as published",
    }
    options: ClassVar[Mapping[str, Choice]] = {**sound_options("spectrogram"), **visual_options(3, "middle")}
    parts: ClassVar[Mapping[str, Part]] = {
        "list": Part("the list of clips", ("MM-Debiased.json", "Imbalance_train_test_val.json", "*/MM-Debiased.json")),
        "visual": Part("frames", ("all_frame", "visual", "video", "hdf5", "frames"), sign=False),
        "audio": Part("spectrograms", ("all_spec", "audio", "spectrogram", "pkl"), sign=False),
    }

    def _scan(self) -> None:
        path = self.place("list")
        content = read_json(path)
        names, clips = self._parts_of(content, path)
        self.class_names = tuple(names)
        audio, frames = SoundFolder(self.place("audio")), names_in(self.place("visual"))
        for clip, entry in clips.items():
            split = {"training": "train", "testing": "test", "validation": "validation"}.get(str(entry.get("subset")))
            index = self.label_of(str(entry.get("label")), names, clip, path)
            if index is None:
                continue
            if split is None:
                self.skip(clip, f"subset {entry.get('subset')!r}", path, bad="Correct the list.")
            elif not safe_name(clip):
                self.skip(clip, "a name that leads out of the folder", path, bad="Do not use this list.")
            elif (sound := audio.find(clip)) is None:
                self.skip(clip, "no sound file", audio.folder)
            elif f"{clip}.hdf5" not in frames:
                self.skip(clip, "no frames", self.place("visual"))
            else:
                files = {"audio": sound, "visual": self.place("visual") / f"{clip}.hdf5"}
                self.samples.append(Sample(clip, split, index, files))

    @staticmethod
    def _parts_of(content: Any, path: Path) -> tuple[Sequence[str], dict[str, dict[str, Any]]]:
        clips = content.get("database") if isinstance(content, dict) else None
        names = content.get("labels") if isinstance(content, dict) else None
        if not isinstance(clips, dict) or not all(isinstance(entry, dict) for entry in clips.values()):
            raise ValueError(f"Expected {path} to hold a `database` of clips, but got none. Is it the right file?")
        if not isinstance(names, list) or len(set(map(str, names))) < len(names):
            raise ValueError(f"Expected {path} to hold distinct `labels`, but got none. Is it the right file?")
        return [str(name) for name in names], clips

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        options = self.chosen
        sound = read_features(sample.files["audio"], options["audio"], options["padding"], options["resampler"])
        path = sample.files["visual"]
        frames = h5_images(path, "video")
        places = choose_of_ten(len(frames), options["frames"], options["pick"], training=training, generator=generator)
        images = [
            read_image(
                np.asarray(frames[place], dtype=np.uint8).tobytes(),
                options["size"],
                training=training,
                generator=generator,
                name=f"frame {place} of {path}",
            )
            for place in places
        ]
        return {"audio": torch.from_numpy(sound), "visual": torch.stack(images)}
