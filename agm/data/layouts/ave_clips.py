"""AVE, clips: sound and frames of 4,143 clips, one event each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from agm.data.layouts.audio_visual import AudioVisual, SoundFolder
from agm.data.layouts.choices import Choice, sound_options, visual_options
from agm.data.layouts.layout import Part, Sample
from agm.data.layouts.lists import read_rows

__all__ = ["AveClips"]


class AveClips(AudioVisual):
    """{train,val,test}Set.txt with lines CLASS&VIDEO&QUALITY&START&END; spectrograms or sounds, and frames.

    Classes are numbered as they first appear in testSet.txt, as PMR numbers them. A video that a list names twice
    counts once. Frames of folders without -SE at their end, one a second, are cut to START..END.
    """

    name = "ave-clips"
    title = "AVE (clips)"
    source = "github.com/YapengTian/AVE-ECCV18; of AudioSet (YouTube)"
    schemes: ClassVar[Mapping[str, str]] = {"clean": "the set's own train, validation and test", "authors": "the same"}
    options: ClassVar[Mapping[str, Choice]] = {**sound_options("spectrogram"), **visual_options(1, "first")}
    parts: ClassVar[Mapping[str, Part]] = {
        "test": Part("the list of test clips", ("testSet.txt", "data/testSet.txt")),
        "train": Part("the list of training clips", ("trainSet.txt", "data/trainSet.txt")),
        "validation": Part("the list of validation clips", ("valSet.txt", "data/valSet.txt"), needed=False),
        "audio": Part("sounds or spectrograms", ("Audio-1004-SE", "Audio-1004", "audio", "Audio"), sign=False),
        "visual": Part("frames", ("Image-01-FPS-SE", "Image-01-FPS", "visual"), sign=False),
    }

    def _scan(self) -> None:
        audio, names = SoundFolder(self.place("audio")), list[str]()
        seen: set[tuple[str, str]] = set()
        for split in ("test", "train", "validation"):
            path = self.found[split]
            if path is None:
                continue
            for number, cells in read_rows(path, "&", columns=5):
                label, video, _, start, end = cells[:5]
                if (label, video) == ("Category", "VideoID"):
                    continue
                if not (start.isdigit() and end.isdigit() and int(start) < int(end)):
                    reason = f"seconds {start!r} to {end!r} in line {number}"
                    self.skip(
                        video,
                        reason,
                        path,
                        bad="Correct the list, or leave such samples out with agm data convert --skip-bad.",
                    )
                    continue
                if label not in names and split == "test":
                    names.append(label)
                if (split, video) in seen:
                    self.skip(video, "a video that the list names twice", path)
                    continue
                seen.add((split, video))
                index = self.label_of(label, names, video, path)
                if index is not None and self.safe(video, path):
                    frames = self.place("visual") / video
                    self.pair(video, split, index, audio, frames, video, (int(start), int(end)))
        self.class_names = tuple(names)
        self._whole = not self.place("visual").name.endswith("-SE")

    def frames(self, sample: Sample) -> Sequence[Path]:
        found = super().frames(sample)
        return (found[slice(*sample.extra)] or found) if self._whole else found
