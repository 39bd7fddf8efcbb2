"""`agm data inspect` and `agm data convert`: one safe file, whole or not at all; what is bad is named and counted."""

import itertools
import shutil

import numpy as np
import pytest
import torch

import agm.data
from agm.data.layouts import LAYOUTS, convert, load_layout, open_layout, sentiment_figures
from agm.training import load_run
from agm.training.__main__ import main

from . import trees


@pytest.fixture
def crema_d(tmp_path):
    for package in ("soundfile", "soxr", "PIL"):
        pytest.importorskip(package)
    return trees.crema_d(tmp_path / "CREMA-D")


def said(capsys) -> str:
    """What the command said, in one line, however wide the terminal."""
    return " ".join(capsys.readouterr().out.split())


def test_a_converted_set_is_what_the_reader_reads(crema_d, tmp_path):
    layout = open_layout(crema_d)
    steps = []
    made = convert(layout, tmp_path / "crema-d.npz", progress=lambda done, total: steps.append((done, total)))
    assert made.counts == {"train": 16, "test": 6}
    assert steps == [(number, 22) for number in range(1, 23)]
    data = agm.data.load(tmp_path / "crema-d.npz")
    assert data.class_names == trees.EMOTIONS
    for split, samples in layout.arrange().items():
        assert data.splits[split].target.tolist() == [sample.label for sample in samples]
        for place in (0, len(samples) - 1):
            values = layout.read(samples[place])
            assert torch.equal(data.splits[split].inputs["audio"][place], values["audio"])
            torch.testing.assert_close(data.splits[split].inputs["visual"][place], values["visual"], rtol=0, atol=1e-6)
    with np.load(tmp_path / "crema-d.npz") as stored:
        assert stored["visual"].dtype == np.uint8  # a quarter of the size
        assert stored["meta.layout"][:2].tolist() == ["crema-d", "clean"]
        assert stored["meta.name"][0] == "1001_DFA_NEU_XX"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CREMA-D", "crema-d.npz"]


def test_the_same_in_memory(crema_d, tmp_path):
    layout = open_layout(crema_d)
    convert(layout, tmp_path / "x.npz", scheme="actors")
    stored, held = agm.data.load(tmp_path / "x.npz"), load_layout(layout, scheme="actors")
    for split in ("train", "validation", "test"):
        assert torch.equal(stored.splits[split].target, held.splits[split].target)
        for name in ("audio", "visual"):
            left, right = stored.splits[split].inputs[name], held.splits[split].inputs[name]
            torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


def test_equal_data_give_equal_bytes(tmp_path):
    layout = open_layout(trees.av_mnist(tmp_path / "a"))
    for name in ("x.npz", "y.npz"):
        convert(layout, tmp_path / name)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


def test_a_converted_set_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.av_mnist(tmp_path / "avmnist")
    assert main(["data", "convert", "av-mnist", "avmnist", "--split", "authors", "--output", "digits.npz"]) == 0
    output = said(capsys)
    assert "AV-MNIST: 43 train, 18 test" in output
    assert "classes: 0 0; 1 1; 2 2" in output
    assert "left out, which the authors hold out for competition strength: 7" in output
    assert "agm train --dataset digits.npz" in output
    arguments = [
        "train",
        "--dataset",
        "digits.npz",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--width",
        "8",
        "--threads",
        "1",
        "--out",
        "run",
    ]
    assert main(arguments) == 0


def test_converted_sentiments_are_learnt_as_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.mult(tmp_path / "mosei")
    assert main(["data", "inspect", "mosei", "--set", "labels=score"]) == 0
    assert "16 samples, of each a number to predict: sentiment" in said(capsys)
    assert main(["data", "convert", "mosei", "mosei", "--set", "labels=score", "--output", "x.npz"]) == 0
    assert "to predict: a number, sentiment" in said(capsys)
    arguments = ["--dataset", "x.npz", "--epochs", "1", "--width", "8", "--threads", "1", "--error", "absolute"]
    assert main(["train", *arguments, "--out", "run"]) == 0
    output = said(capsys)
    assert "to predict: numbers (1 a sample) (sentiment)" in output
    result = load_run("run")
    test = agm.data.load("x.npz").test
    with torch.no_grad():
        figures = sentiment_figures(result.network.eval()(**test.inputs), test.target)
    for name in ("mae", "correlation"):
        assert figures[name] == pytest.approx(result.evaluation.further[name], abs=1e-5)


def test_inspect_says_what_is_there_and_what_is_left_out(crema_d, tmp_path, capsys):
    assert main(["data", "inspect", str(crema_d), "--decode"]) == 0
    output = said(capsys)
    for line in (
        "CREMA-D (layout crema-d), from github.com/CheyneyComputerScience/CREMA-D",
        f"found sound files: {crema_d}/AudioWAV",
        "audio: (1, 257, 188) float32",
        "22 samples in 6 classes, in this order: 0 NEU (4); 1 HAP (3); 2 SAD (3); 3 FEA (4); 4 DIS (4); 5 ANG (4)",
        "--split actors: 7 train, 8 validation, 7 test",
        "--split authors: 14 train, 5 test, 3 dep",
        "2 samples are left out",
        f"1 no sound file; the first is 1003_IEO_HAP_XX ({crema_d}/AudioWAV)",
        "0 samples do not decode",
        "note: 3 actors are in train and in test",
    ):
        assert line in output


def test_layouts_are_listed_and_described(capsys):
    assert main(["data", "layouts"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.strip().split("\n")] == list(LAYOUTS)
    for name in LAYOUTS:
        assert main(["data", "layouts", name]) == 0
    assert main(["data", "layouts", "crema-d"]) == 0
    output = said(capsys)
    assert "frames: Image-01-FPS or visual" in output
    assert "--split actors: no actor in two splits" in output
    assert "--set audio=stft: front end of the sound" in output
    assert "one of stft, stft-20s, stft-16k, spectrogram, fbank" in output
    assert main(["data", "layouts", "cremad"]) == 2
    assert "Expected the name of a layout (crema-d, av-mnist" in capsys.readouterr().err


def test_inspect_recognises_half_a_download(crema_d, capsys):
    shutil.rmtree(crema_d / "Image-01-FPS")
    assert main(["data", "inspect", str(crema_d)]) == 2
    captured = capsys.readouterr()
    assert "missing frames (Image-01-FPS or visual). Extract one frame a second" in " ".join(captured.out.split())
    assert "Expected all parts of CREMA-D, but got 1 that are missing" in captured.err


def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/README").write_text("hello")
    assert main(["data", "inspect", str(tmp_path / "letters")]) == 2
    assert "to have the layout of one of crema-d, av-mnist" in capsys.readouterr().err
    np.savez(tmp_path / "own.npz", sound=np.zeros(3))
    assert main(["data", "inspect", str(tmp_path / "own.npz")]) == 2
    assert "own.npz says what it reads." in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "nowhere")]) == 2
    assert "nothing there" in capsys.readouterr().err
    assert main(["data", "convert", "crema-d", str(tmp_path / "letters"), "--output", "x.npz"]) == 2
    message = capsys.readouterr().err
    assert "to hold sound files of CREMA-D (AudioWAV or Audio or audio), but got nothing there" in message


def spoil_sound(root):
    path = root / "AudioWAV/1002_IEO_NEU_XX.wav"
    path.write_bytes(path.read_bytes()[:20])
    return path


def silent_sound(root):
    return trees.write_sound(root / "AudioWAV/1002_IEO_NEU_XX.wav", trees.noise(0))


def infinite_sound(root):
    import soundfile

    path = root / "AudioWAV/1002_IEO_NEU_XX.wav"
    soundfile.write(path, np.array([0.5, np.nan, 0.25] * 2000, np.float32), 16000, subtype="FLOAT")
    return path


def text_for_a_sound(root):
    path = root / "AudioWAV/1002_IEO_NEU_XX.wav"
    path.write_text("<html>404</html>")
    return path


def spoil_image(root):
    path = root / "Image-01-FPS/1002_IEO_NEU_XX/00029.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return path


def text_for_an_image(root):
    path = root / "Image-01-FPS/1002_IEO_NEU_XX/00029.jpg"
    path.write_text("version https://git-lfs.github.com/spec/v1")
    return path


BAD_FILES = {
    "half a sound": (spoil_sound, "to be a sound file that decodes"),
    "a sound without samples": (silent_sound, "to hold sound, but got no samples"),
    "NaN in a sound": (infinite_sound, "to hold sound, but got NaN or infinity in it"),
    "a page for a sound": (text_for_a_sound, "to be a sound file that decodes"),
    "half an image": (spoil_image, "to be an image that opens"),
    "a pointer for an image": (text_for_an_image, "to be an image that opens"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_or_counted(name, crema_d, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil, reason = BAD_FILES[name]
    path = spoil(crema_d)
    # Of three frames AGM's draw takes the second.
    assert main(["data", "convert", "crema-d", "CREMA-D", "--output", "out/x.npz"]) == 2
    captured = capsys.readouterr()
    assert f"Expected {path.relative_to(tmp_path)} {reason}" in captured.err
    assert "--skip-bad" in captured.err
    assert list((tmp_path / "out").iterdir()) == []  # nothing half-written
    assert main(["data", "convert", "crema-d", "CREMA-D", "--skip-bad", "--output", "out/x.npz"]) == 0
    output = said(capsys)
    assert "CREMA-D: 15 train, 6 test" in output
    assert f"left out since they do not decode: 1 Expected {path.relative_to(tmp_path)}" in output
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["x.npz"]
    assert main(["data", "inspect", "CREMA-D", "--decode"]) == 0
    assert "1 samples do not decode" in said(capsys)


BAD_LISTS = {
    "a label that is not in the table": ("1001_DFA_NEU_XX,HAPPY", "label 'HAPPY', which is none of NEU, HAP, SAD"),
    "a name that leads out": ("../../etc/passwd,NEU", "a name that leads out of the folder"),
    "an absolute name": ("/etc/passwd,NEU", "a name that leads out of the folder"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_rows_are_named_or_counted(name, crema_d):
    row, reason = BAD_LISTS[name]
    path = crema_d / "CREMAD/train.csv"
    path.write_text(path.read_text("utf-8-sig") + row + "\n")
    with pytest.raises(ValueError, match=r"Expected every sample of .*train\.csv to be readable") as caught:
        open_layout(crema_d)
    assert reason in str(caught.value)
    layout = open_layout(crema_d, skip_bad=True)
    assert len(layout.samples) == 22
    assert [skipped.reason for skipped in layout.skipped if reason in skipped.reason]


def test_a_list_with_too_few_cells(crema_d):
    path = crema_d / "CREMAD/test.csv"
    path.write_text("1001_DFA_NEU_XX\n")
    with pytest.raises(ValueError, match=r"Expected line 1 of .*test\.csv to have 2 cells between ',', but got 1"):
        open_layout(crema_d)


def test_an_interruption_leaves_nothing(crema_d, tmp_path):
    counter = itertools.count()

    def interrupted(done, total):
        if next(counter) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(open_layout(crema_d), tmp_path / "out/x.npz", progress=interrupted)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    layout = open_layout(trees.av_mnist(tmp_path / "a"))
    needed = 2 * 68 * 4 * (28 * 28 + 112 * 112)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(
        ValueError, match=f"to have room for {needed} bytes while x.npz is written, but got {needed - 1}"
    ):
        convert(layout, tmp_path / "out/x.npz")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert convert(layout, tmp_path / "out/x.npz").counts == {"train": 44, "validation": 4, "test": 20}


def test_an_existing_file_is_kept(crema_d, tmp_path, capsys):
    (tmp_path / "x.npz").write_text("mine")
    assert main(["data", "convert", "crema-d", str(crema_d), "--output", str(tmp_path / "x.npz")]) == 2
    assert "Expected --output to be a new file" in capsys.readouterr().err
    assert (tmp_path / "x.npz").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "audio=mel"], "Expected option `audio` to be one of stft, stft-20s, stft-16k, spectrogram, fbank"),
        (["--set", "frames=0"], "Expected option `frames` to be an integer from 1 to 64, but got '0'"),
        (["--set", "depth=3"], "Expected options of crema-d (audio, padding, resampler, frames"),
        (["--set", "frames"], "Expected --set to be NAME=VALUE"),
        (["--split", "mine"], "Expected --split of crema-d to be one of clean, actors, authors, but got 'mine'"),
        (["--output", "x.h5"], "Expected --output to end in .npz"),
    ],
)
def test_bad_options(arguments, message, crema_d, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--output" not in arguments:
        arguments = [*arguments, "--output", "x.npz"]
    assert main(["data", "convert", "crema-d", "CREMA-D", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["CREMA-D"]


def test_arrays_that_stopped_halfway(tmp_path):
    trees.av_mnist(tmp_path)
    path = tmp_path / "audio/test_data.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"Expected .*audio/test_data\.npy to be an array .* stopped halfway"):
        open_layout(tmp_path)


def test_arrays_with_code_in_them(tmp_path):
    trees.av_mnist(tmp_path)
    np.save(tmp_path / "train_labels.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"Expected .*train_labels\.npy to be an array .* pickled objects"):
        open_layout(tmp_path)


def test_h5_that_stopped_halfway(tmp_path):
    pytest.importorskip("h5py")
    trees.ave(tmp_path)
    path = tmp_path / "visual_feature.h5"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"Expected .*visual_feature\.h5 to be an HDF5 file"):
        open_layout(tmp_path)


def test_h5_that_leads_to_another_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    trees.ave(tmp_path)
    trees.write_h5(tmp_path / "secret.h5", {"avadataset": np.zeros((12, 10, 128))})
    (tmp_path / "audio_feature.h5").unlink()
    with h5py.File(tmp_path / "audio_feature.h5", "w") as file:
        file["avadataset"] = h5py.ExternalLink("secret.h5", "avadataset")
    with pytest.raises(ValueError, match=r"Expected .*audio_feature\.h5 to hold an array 'avadataset'"):
        open_layout(tmp_path)


def test_nan_in_stored_features(tmp_path):
    pytest.importorskip("PIL")
    trees.kinetics_sounds(tmp_path)
    path = tmp_path / "audio/--1-0ihtnBU_000058_000068.npy"
    np.save(path, np.full((1024, 128), np.nan, np.float32))
    layout = open_layout(tmp_path)
    with pytest.raises(ValueError, match=r"--1-0ihtnBU_000058_000068\.npy to hold a finite spectrogram"):
        load_layout(layout)
    assert len(load_layout(layout, skip_bad=True).train) == 4


def test_the_missing_decoder_is_named(crema_d, monkeypatch, capsys, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert main(["data", "convert", "crema-d", str(crema_d), "--output", str(tmp_path / "x.npz")]) == 2
    assert "Expected the package soundfile to be installed" in (message := capsys.readouterr().err)
    assert "pip install 'agm-torch[media]'" in message
