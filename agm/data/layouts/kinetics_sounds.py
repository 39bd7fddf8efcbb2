"""Kinetics-Sounds: what is heard and seen in ten seconds, in 31 or 34 classes of Kinetics-400."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from agm.data.layouts.audio_visual import AudioVisual, SoundFolder
from agm.data.layouts.choices import Choice, sound_options, visual_options
from agm.data.layouts.layout import Part
from agm.data.layouts.lists import names_in, read_rows
from agm.data.layouts.pictures import choose_of_ten

__all__ = ["KineticsSounds", "KineticsSounds34"]


_FRAMES = ("visual", "Image-01-FPS", "Image-01-FPS-SE")
_SOUNDS = ("audio", "Audio", "audio_fbank")


class KineticsSounds(AudioVisual):
    """31 classes: my_train.txt and my_test.txt (VIDEO,FRAMES,LABEL), or ks_train_overlap.txt (VIDEO ... LABEL).

    The lists number the classes and do not name them. Videos with three frames or fewer are left out. Of ten frames
    three are taken, as MMPareto and BalanceBenchmark take them: in training one of each third, else the middle ones;
    with fewer than seven frames the first one three times. The tenth frame is never taken.
    """

    name = "kinetics-sounds"
    title = "Kinetics-Sounds (31 classes)"
    source = "lists: github.com/GeWu-Lab/OGM-GE_CVPR2022; clips: Kinetics-400 (annotations CC BY 4.0; YouTube)"
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the lists, a tenth of train held out for validation",
        "authors": "the lists, chosen on test as published",
    }
    options: ClassVar[Mapping[str, Choice]] = {**sound_options("fbank"), **visual_options(3, "lower-middle")}
    parts: ClassVar[Mapping[str, Part]] = {
        "train": Part("the list of training clips", ("my_train.txt", "ks_train_overlap.txt", "*/my_train.txt")),
        "test": Part("the list of test clips", ("my_test.txt", "ks_test_overlap.txt", "*/my_test.txt")),
        "train_visual": Part("frames of train", (*_FRAMES, "train-frames-1fps/train"), sign=False),
        "test_visual": Part("frames of test", (*_FRAMES, "val-frames-1fps/test", "test-frames-1fps/test"), sign=False),
        "train_audio": Part("sounds or filter banks of train", (*_SOUNDS, "train_spec"), sign=False),
        "test_audio": Part("sounds or filter banks of test", (*_SOUNDS, "test_spec", "val_spec"), sign=False),
    }
    fewest_frames = 4
    classes = 31

    def _scan(self) -> None:
        self.class_names = tuple(f"class {number}" for number in range(self.classes))
        self.notes.append("the lists number the classes 0 to 30 and do not name them")
        numbers = [str(number) for number in range(self.classes)]
        for split in ("train", "test"):
            path, audio = self.place(split), SoundFolder(self.place(f"{split}_audio"))
            separator = " " if "overlap" in path.name else ","
            for _, cells in read_rows(path, separator, columns=2):
                index = self.label_of(cells[-1], numbers, cells[0], path)
                if index is not None and self.safe(cells[0], path):
                    frames = self.place(f"{split}_visual") / cells[0]
                    self.pair(cells[0], split, index, audio, frames, cells[0][:11])

    def choose(self, number: int, training: bool, generator: torch.Generator | None) -> list[int]:
        options = self.chosen
        return choose_of_ten(number, options["frames"], options["pick"], training=training, generator=generator)


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
