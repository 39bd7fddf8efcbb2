"""Sets as they are downloaded, before frames are cut and archives unpacked: recognised, with commands that help."""

import os
import re
import subprocess

import pytest

import agm.data
from agm.data.layouts import LAYOUTS, open_layout
from agm.data.layouts.downloads import DOWNLOADS, hint
from agm.training.__main__ import main

from . import trees

FFMPEG = """#!/bin/sh
for last; do :; done
case "$last" in
    *%05d*) for n in 00001 00002 00003 00004 00005; do cp "$FRAME" "$(echo "$last" | sed "s/%05d/$n/")"; done ;;
    *) cp "$SOUND" "$last" ;;
esac
"""


def place_of(sign: str) -> str:
    """A file that a pattern matches."""
    return re.sub(r"\[([^]])[^]]*\]", r"\1", sign).replace("*", "x-1")


@pytest.mark.parametrize(("download", "sign"), [(one, sign) for one in DOWNLOADS for sign in one.signs])
def test_each_is_recognised(download, sign, tmp_path):
    path = tmp_path / place_of(sign)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    told = hint(tmp_path)
    assert download.what in told
    assert f"({place_of(sign)})" in told
    assert f"agm data layouts {download.layout} " in told
    assert download.layout in LAYOUTS
    assert hint(tmp_path, "food-101") == ""  # of another set


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("UCF101.rar", "of ucf101 that is not unpacked: unrar x "),
        ("avmnist.tar.gz", "of av-mnist that is not unpacked: tar -xzf "),
        ("AVE_Dataset.zip", "of ave-clips that is not unpacked: unzip -q "),
        ("vggsound_00.tar.gz", "of vggsound that is not unpacked: tar -xzf "),
        ("k400_train.tar", "of kinetics-sounds that is not unpacked: tar -xf "),
        ("UPMC_Food101.zip", "of food-101 that is not unpacked: unzip -q "),
        ("IJCAI2019_data.zip", "of twitter-15 that is not unpacked"),
        ("UCI HAR Dataset.zip", "of uci-har that is not unpacked: unzip -q '"),
        ("PAMAP2_Dataset.zip", "of pamap2 that is not unpacked"),
        ("USC-HAD.zip", "of usc-had that is not unpacked"),
        ("Mine.7z", "an archive that is not unpacked: 7z x "),
    ],
)
def test_archives(name, told, tmp_path):
    (tmp_path / name).touch()
    assert told in hint(tmp_path / name)
    assert hint(tmp_path / name).endswith(f"{name}" + "'" * (" " in name))
    assert f"({name})" in hint(tmp_path) or told in hint(tmp_path)
    with pytest.raises(ValueError, match=r"to have the layout of a dataset .* an archive"):
        agm.data.load(tmp_path / name)


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """A program that gives five frames, or a sound, for any video."""
    for package in ("PIL", "soundfile", "soxr"):
        pytest.importorskip(package)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/ffmpeg"
    program.write_text(FFMPEG)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FRAME", str(trees.write_image(tmp_path / "frame.jpg")))
    monkeypatch.setenv("SOUND", str(trees.write_sound(tmp_path / "sound.wav")))


def crema_d(root):
    trees.crema_d(root)
    for clip in [*(root / "Image-01-FPS").iterdir()]:
        (root / "VideoFlash").mkdir(exist_ok=True)
        (root / "VideoFlash" / f"{clip.name}.flv").touch()
        for frame in clip.iterdir():
            frame.unlink()
        clip.rmdir()
    (root / "Image-01-FPS").rmdir()


def ave(root):
    trees.ave_clips(root)
    for folder in ("Audio-1004-SE", "Image-01-FPS-SE"):
        (root / folder).rename(root.parent / folder)
    for number in range(12):
        (root / "AVE" / f"vid{number:02d}_-x.mp4").touch()


def kinetics(root):
    (root / "my videos").mkdir(parents=True)
    for number in range(6):
        (root / "my videos" / f"a b{number}_000058_000068.mp4").touch()
    for name, numbers in (("train", range(4)), ("test", range(4, 6))):
        (root / f"my_{name}.txt").write_text("\n".join(f"a b{number}_000058_000068,10,4" for number in numbers))


def vggsound(root):
    (root / "video").mkdir(parents=True)
    rows = [(f"a{number}", 30, "playing harp", "train" if number < 4 else "test") for number in range(6)]
    (root / "vggsound.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    for row in rows:
        (root / "video" / f"{row[0]}_000030.mp4").touch()


@pytest.mark.parametrize(
    ("write", "layout", "samples"),
    [(crema_d, "crema-d", 22), (ave, "ave-clips", 12), (kinetics, "kinetics-sounds", 6), (vggsound, "vggsound", 6)],
)
def test_the_commands_give_what_is_read(write, layout, samples, ffmpeg, tmp_path, capsys):
    root = tmp_path / "the set"
    write(root)
    assert main(["data", "inspect", str(root), "--layout", layout]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "missing" in message
    command = message.partition("Cut them with ffmpeg: ")[2]
    assert command
    if layout == "vggsound":
        command += " && ln -s train visual/test"
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    assert main(["data", "inspect", str(root), "--decode"]) == 0
    assert f"{samples} samples" in (told := capsys.readouterr().out)
    assert "0 samples do not decode" in told
    assert open_layout(root).name == layout


def test_videos_of_no_known_set(tmp_path, capsys):
    (tmp_path / "holiday.MP4").touch()
    assert main(["data", "inspect", str(tmp_path)]) == 2
    assert "It has videos (holiday.MP4)" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_sets(tmp_path):
    trees.av_mnist(tmp_path / "digits")
    with pytest.raises(ValueError, match=r"but got another. Folders in it have one: digits \(av-mnist\). Give one of"):
        open_layout(tmp_path)
    with pytest.raises(ValueError, match=r"Folders in it have one: digits \(av-mnist\)"):
        agm.data.load(tmp_path)
