"""CREMA-D: 7,442 clips of 91 actors who speak twelve sentences in six emotions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from agm.data.layouts.audio_visual import AudioVisual, SoundFolder
from agm.data.layouts.choices import Choice, one_of, sound_options, visual_options
from agm.data.layouts.layout import Part, Sample, groups_shared
from agm.data.layouts.lists import names_in, read_rows
from agm.data.layouts.splits import by_group, hold_out, ninety_percent

__all__ = ["CremaD"]

# Table: OGM-GE, AGM, PMR and BalanceBenchmark; sorted: MMPareto, Diagnosing & Re-learning and Data Remixing.
ORDERS = {"table": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"), "sorted": ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")}
_LISTS = ("", "CREMAD/", "data/CREMAD/", "annotations/", "data/")


_CLIP = re.compile(r"[0-9]{4}_[A-Z]{3}_[A-Z]{3}_[A-Z]{2}")


def _places(name: str) -> tuple[str, ...]:
    return tuple(folder + name for folder in _LISTS)


class CremaD(AudioVisual):
    """Sound (AudioWAV or Audio), frames (Image-01-FPS or visual) and the lists of OGM-GE, which most papers take.

    The name of a clip tells its actor: 1001_DFA_ANG_XX. Without lists the clips are split by actor alone.
    """

    name = "crema-d"
    title = "CREMA-D"
    source = "github.com/CheyneyComputerScience/CREMA-D (git-lfs); Open Database License 1.0"
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "train.csv less a tenth of it, drawn by names, for validation; test.csv. The same actors are in all",
        "actors": "no actor in two splits: 18 for testing, 9 for validation",
        "authors": "AGM's: the first 90 % of train.csv and of test.csv; what is left of both as dep",
    }
    options: ClassVar[Mapping[str, Choice]] = {
        **sound_options("stft"),
        **visual_options(1, "seeded"),
        "labels": one_of("table", "sorted", help="NEU HAP SAD FEA DIS ANG (OGM-GE, AGM), or sorted (MMPareto)"),
    }
    parts: ClassVar[Mapping[str, Part]] = {
        "audio": Part("sound files", ("AudioWAV", "Audio", "audio"), advice="They are in AudioWAV of the repository."),
        "visual": Part(
            "frames",
            ("Image-01-FPS", "visual"),
            advice="Extract one frame a second from VideoFlash/CLIP.flv into Image-01-FPS/CLIP/00000.jpg, with ffmpeg.",
        ),
        "train": Part("the list of training clips", _places("train.csv"), needed=False, sign=False),
        "test": Part("the list of test clips", _places("test.csv"), needed=False, sign=False),
        "validation": Part("a list of validation clips", _places("val.csv"), needed=False, sign=False),
        "mine": Part("a list without validation clips", _places("my_train.csv"), needed=False, sign=False),
        "order": Part("the list of classes", _places("stat.csv"), needed=False, sign=False),
    }

    @classmethod
    def fits(cls, found: Mapping[str, Path]) -> bool:
        folders = [found[key] for key in ("audio", "visual") if key in found]
        return any(folder.name == "AudioWAV" or any(map(_CLIP.match, names_in(folder))) for folder in folders)

    def _scan(self) -> None:
        self.class_names = ORDERS[self.chosen["labels"]]
        self._audio = SoundFolder(self.place("audio"))
        lists = {"train": self.found["train"], "test": self.found["test"]}
        if self.found["validation"] and self.found["mine"]:
            lists = {"train": self.found["mine"], "validation": self.found["validation"], "test": self.found["test"]}
        if None in lists.values():
            self.notes.append("without train.csv and test.csv the clips are split by actor")
            for clip in sorted(name.rpartition(".")[0] for name in self._audio.names if _CLIP.match(name)):
                self._add(clip, clip.split("_")[2], "train", self.place("audio"))
        else:
            for split, path in lists.items():
                assert path is not None
                for _, (clip, label, *_rest) in read_rows(path, columns=2):
                    self._add(clip, label, split, path)
            shared = groups_shared(self.listed())
            self.notes.append(f"{shared} actors are in train and in test; --split actors keeps them apart")

    def _add(self, clip: str, label: str, split: str, file: Path) -> None:
        index = self.label_of(label, self.class_names, clip, file)
        if index is not None and self.safe(clip, file):
            self.pair(clip, split, index, self._audio, self.place("visual") / clip, clip.split("_")[0])

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        listed = self.listed()
        if scheme == "authors":
            return ninety_percent(listed)
        if scheme == "actors" or None in (self.found["train"], self.found["test"]):
            return by_group(self.samples)
        return hold_out(listed, 0.1, grouped=False)  # as in the set's own lists, actors are in all
