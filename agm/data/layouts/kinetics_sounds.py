"""Kinetics-Sounds: what is heard and seen in ten seconds, in 31 or 34 classes of Kinetics-400."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from agm.data.layouts.audio_visual import AudioVisual, SoundFolder
from agm.data.layouts.choices import Choice, sound_options, visual_options
from agm.data.layouts.layout import Part
from agm.data.layouts.lists import names_in, read_rows

__all__ = ["KineticsSounds", "KineticsSounds34"]


class KineticsSounds(AudioVisual):
    """31 classes: my_train.txt and my_test.txt (VIDEO,FRAMES,LABEL), or ks_train_overlap.txt (VIDEO ... LABEL).

    The lists number the classes and do not name them. Videos with three frames or fewer are left out. Of ten frames
    three are taken, as MMPareto and BalanceBenchmark take them: in training one of each third, else the middle ones;
    with fewer than seven frames the first one three times.
    """

    name = "kinetics-sounds"
    title = "Kinetics-Sounds (31 classes)"
    source = "lists: github.com/GeWu-Lab/OGM-GE_CVPR2022; clips: Kinetics-400 (annotations CC BY 4.0; YouTube)"
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the lists, a tenth of train held out for validation",
        "authors": "the lists, chosen on test as published",
    }
    options: ClassVar[Mapping[str, Choice]] = {**sound_options("fbank"), **visual_options(3, "segments")}
    parts: ClassVar[Mapping[str, Part]] = {
        "train": Part("the list of training clips", ("my_train.txt", "ks_train_overlap.txt", "*/my_train.txt")),
        "test": Part("the list of test clips", ("my_test.txt", "ks_test_overlap.txt", "*/my_test.txt")),
        "visual": Part("frames", ("visual", "Image-01-FPS"), sign=False),
        "audio": Part("sounds or filter banks", ("audio", "Audio", "audio_fbank"), sign=False),
    }
    fewest_frames = 4
    classes = 31

    def _scan(self) -> None:
        self.class_names = tuple(f"class {number}" for number in range(self.classes))
        self.notes.append("the lists number the classes 0 to 30 and do not name them")
        audio, numbers = SoundFolder(self.place("audio")), [str(number) for number in range(self.classes)]
        for split in ("train", "test"):
            path = self.place(split)
            separator = " " if "overlap" in path.name else ","
            for _, cells in read_rows(path, separator, columns=2):
                index = self.label_of(cells[-1], numbers, cells[0], path)
                if index is not None and self.safe(cells[0], path):
                    self.pair(cells[0], split, index, audio, self.place("visual") / cells[0], cells[0][:11])

    def choose(self, number: int, training: bool, generator: torch.Generator | None) -> list[int]:
        wanted = self.chosen["frames"]
        if self.chosen["pick"] != "segments":
            return super().choose(number, training, generator)
        if number < 7:
            return [0] * wanted
        part = min(number, 10) // wanted
        places = []
        for turn in range(wanted):
            if training:
                place = turn * part + int(torch.randint(0, max(part, 1), (1,), generator=generator))
            else:
                place = turn * part + max(part // 2, 1) - 1
            places.append(min(place, number - 1))
        return places


class KineticsSounds34(AudioVisual):
    """34 classes in folders: visual/{train_img,val_img}/Image-01-FPS/CLASS/VIDEO, audio/{train,test}/CLASS/VIDEO.pkl.

    Classes are in the order of class.txt, one line with commas; without it sorted.
    """

    name = "kinetics-sounds-34"
    title = "Kinetics-Sounds (34 classes)"
    source = "as DGL, ARL and DMRNet prepare it; clips: Kinetics-400 (YouTube)"
    schemes: ClassVar[Mapping[str, str]] = KineticsSounds.schemes
    options: ClassVar[Mapping[str, Choice]] = {**sound_options("spectrogram"), **visual_options(1, "first")}
    parts: ClassVar[Mapping[str, Part]] = {
        "train_visual": Part("frames of train", ("visual/train_img/Image-01-FPS", "visual/train_img")),
        "test_visual": Part("frames of test", ("visual/val_img/Image-01-FPS", "visual/val_img", "visual/test_img")),
        "train_audio": Part("sounds of train", ("audio/train",)),
        "test_audio": Part("sounds of test", ("audio/test", "audio/val")),
        "classes": Part("the list of classes", ("class.txt", "data/class.txt"), needed=False, sign=False),
    }

    def _scan(self) -> None:
        path = self.found["classes"]
        if path is not None:
            names = [cell for _, cells in read_rows(path) for cell in cells if cell]
        else:
            names = sorted(names_in(self.place("train_visual")))
            self.notes.append("without class.txt the classes are sorted")
        self.class_names = tuple(names)
        for split in ("train", "test"):
            folder = self.place(f"{split}_visual")
            for label in sorted(names_in(folder)):
                index = self.label_of(label, names, label, path or folder)
                if index is None:
                    continue
                audio = SoundFolder(self.place(f"{split}_audio") / label)
                for video in sorted(names_in(folder / label)):
                    self.pair(video, split, index, audio, folder / label / video, video[:11])
