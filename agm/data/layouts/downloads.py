"""What is not a layout yet: videos that nobody has cut into frames, archives that are not unpacked, folders of sets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

__all__ = ["Download", "hint"]

_FRAMES = (
    'for f in {videos}; do d="{frames}/$(basename "${{f%.*}}")"; mkdir -p "$d"; '
    'ffmpeg -v error -i "$f" -vf fps=1 "$d/frame_%05d.jpg"; done'
)
_SOUNDS = (
    "mkdir -p {sounds} && for f in {videos}; do "
    'ffmpeg -v error -i "$f" -vn -ac 1 -ar 16000 "{sounds}/$(basename "${{f%.*}}").wav"; done'
)


@dataclass(frozen=True)
class Download:
    """A form in which a set is downloaded and which no reader takes.

    Args:
        layout: name of the layout that it can become.
        what: what it is, in words.
        signs: places of which one is there; `*` stands for any name.
        advice: what to do.
        frames, sounds: folders to cut frames and sounds into by ffmpeg; "" for none.
    """

    layout: str
    what: str
    signs: tuple[str, ...]
    advice: str = ""
    frames: str = ""
    sounds: str = ""

    def commands(self, sign: str) -> Iterator[str]:
        """For a shell in the set's folder."""
        for form, folder in ((_FRAMES, self.frames), (_SOUNDS, self.sounds)):
            if folder:
                yield form.format(videos=sign, frames=folder, sounds=folder)


_TEN = "*_" + "[0-9]" * 6  # VIDEO_START
_CLIP = _TEN + "_" + "[0-9]" * 6  # VIDEO_START_END
DOWNLOADS = (
    Download(
        "crema-d",
        "videos of CREMA-D",
        ("VideoFlash/*.flv", "VideoMP4/*.mp4", "[0-9][0-9][0-9][0-9]_[A-Z][A-Z][A-Z]_*.flv"),
        "The sounds are AudioWAV of the same repository, where git lfs pull fetches them.",
        frames="Image-01-FPS",
    ),
    Download(
        "ave-clips",
        "videos of AVE",
        ("AVE/*.mp4", "AVE_Dataset/AVE/*.mp4"),
        "trainSet.txt, valSet.txt and testSet.txt come with them and have to lie beside the two folders.",
        frames="Image-01-FPS",
        sounds="audio",
    ),
    Download(
        "kinetics-sounds",
        "videos of Kinetics-Sounds",
        (f"*/{_CLIP}.mp4", f"{_CLIP}.mp4", f"k400/train/{_CLIP}.mp4", f"train/*/{_CLIP}.mp4"),
        "my_train.txt and my_test.txt are in github.com/GeWu-Lab/OGM-GE_CVPR2022.",
        frames="visual",
        sounds="audio",
    ),
    Download(
        "vggsound",
        "videos of VGGSound",
        ("scratch/shared/beegfs/hchen/train_data/VGGSound_final/video/*.mp4", f"*/{_TEN}.mp4", f"{_TEN}.mp4"),
        "vggsound.csv says which are for testing; ln -s train visual/test makes one folder do for both.",
        frames="visual/train",
        sounds="audio",
    ),
    Download(
        "ucf101",
        "videos of UCF-101",
        ("UCF-101/*/v_*_g*_c*.avi", "*/v_*_g*_c*.avi", "v_*_g*_c*.avi"),
        "Flow is given away as ucf101_tvl1_flow.zip (github.com/feichtenhofer/twostreamfusion), lists as "
        "UCF101TrainTestSplits-RecognitionTask.zip.",
        frames="rgb",
    ),
    Download(
        "mosei",
        "computational sequences of CMU-MultimodalSDK",
        ("*.csd", "*/*.csd"),
        "agm reads the aligned arrays that MulT and MultiBench made of them: mosei_senti_data.pkl, mosei_raw.pkl, "
        "mosi_data.pkl, mosi_raw.pkl.",
    ),
    Download(
        "mosei",
        "MMSA's arrays of CMU-MOSEI or CMU-MOSI",
        ("aligned_50.pkl", "unaligned_50.pkl", "Processed/*aligned_50.pkl"),
        "agm reads those of MulT and MultiBench: mosei_senti_data.pkl, mosei_raw.pkl, mosi_data.pkl, mosi_raw.pkl.",
    ),
    Download(
        "ur-funny",
        "the parts of UR-FUNNY as its authors give them away",
        ("*_sdk.pkl", "*/*_sdk.pkl"),
        "agm reads the arrays that MultiBench made of them: humor.pkl.",
    ),
    Download(
        "iemocap",
        "recordings of IEMOCAP",
        ("Session1/sentences", "IEMOCAP_full_release*/Session1"),
        "agm reads the features that MMIN made of them: A/comparE.h5, V/denseface.h5, L/bert_large.h5 and target/ "
        "(github.com/AIM3-RUC/MMIN).",
    ),
    Download(
        "balanced-av",
        "the list of BalancedAV without its clips",
        ("MM-Debiased.json", "*/MM-Debiased.json"),
        "The clips are of VGGSound and Kinetics-400: store ten frames of each as JPEG in visual/CLIP.hdf5 (dataset "
        "video), and its spectrogram in audio/CLIP.npy.",
    ),
)

# Names of archives as people download them -> what they hold.
_ARCHIVES = {
    r"avmnist|av-mnist": "av-mnist",
    r"ave(_dataset|[-_]features?)?": "ave-clips",
    r"crema-?d.*": "crema-d",
    r"vggsound.*": "vggsound",
    r"ucf-?101.*": "ucf101",
    r"k400.*|kinetics.*": "kinetics-sounds",
    r"(upmc[-_]?)?food-?101.*": "food-101",
    r"ijcai2019_data|twitter201[57].*": "twitter-15",
    r"dataset_image.*|multimodal-sarcasm.*": "sarcasm",
    r"iemocap.*": "iemocap",
    r"uci[ _+]har[ _+]dataset|human\+activity\+recognition.*": "uci-har",
    r"pamap2.*": "pamap2",
    r"opportunity.*": "opportunity",
    r"wisdm.*": "wisdm",
    r"unimib-?shar": "unimib-shar",
    r"usc-?had": "usc-had",
}
_ENDINGS = {
    ".tar.gz": "tar -xzf",
    ".tgz": "tar -xzf",
    ".tar.bz2": "tar -xjf",
    ".tar.xz": "tar -xJf",
    ".tar": "tar -xf",
    ".zip": "unzip -q",
    ".rar": "unrar x",
    ".7z": "7z x",
}
_VIDEOS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_LOOKED_AT = 2000  # entries of a folder


def hint(path: Path, layout: str | None = None) -> str:
    """What lies at a path that has no layout, or misses parts of one, and what to do about it; "" for nothing known.

    Args:
        path: a folder, or a file.
        layout: name of the layout of which parts are missing.

    Example:
        >>> hint(Path("UCF101.rar"))
        'It is an archive of ucf101 that is not unpacked: unrar x UCF101.rar'
    """
    if not path.is_dir():
        return _of_archives([path])
    for download in DOWNLOADS:
        if layout not in (None, download.layout):
            continue
        for sign in download.signs:
            if (first := next(path.glob(sign), None)) is not None:
                told = (
                    f"It has {download.what} ({first.relative_to(path)}). {download.advice} "
                    f"agm data layouts {download.layout} lists the files that are read."
                )
                commands = [f"cd {shlex.quote(str(path))}", *download.commands(sign)]
                return f"{told} Cut them with ffmpeg: {' && '.join(commands)}" if len(commands) > 1 else told
    entries = sorted(islice(path.iterdir(), _LOOKED_AT))
    if told := _of_archives([entry for entry in entries if entry.is_file()]):
        return told
    if layout is not None:
        return ""
    videos = [entry.name for entry in entries if entry.suffix.lower() in _VIDEOS]
    if videos:
        return (
            f"It has videos ({videos[0]}). agm reads frames and sounds that were cut from them, in folders and with "
            "lists as agm data layouts NAME describes: ffmpeg -i VIDEO -vf fps=1 visual/NAME/frame_%05d.jpg; "
            "ffmpeg -i VIDEO -vn -ac 1 -ar 16000 audio/NAME.wav"
        )
    return ""


def _of_archives(files: list[Path]) -> str:
    for file in files:
        name = file.name.lower()
        ending = next((ending for ending in _ENDINGS if name.endswith(ending)), None)
        if ending is None:
            continue
        stem = name.removesuffix(ending)
        layout = next((layout for form, layout in _ARCHIVES.items() if re.fullmatch(form, stem)), None)
        of = f" of {layout}" if layout else ""
        place = "" if len(files) == 1 else f" ({file.name})"
        told = f"It {'is' if len(files) == 1 else 'has'} an archive{of} that is not unpacked{place}: "
        return told + f"{_ENDINGS[ending]} {shlex.quote(str(file))}"
    return ""
