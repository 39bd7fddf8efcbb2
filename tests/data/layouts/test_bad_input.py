"""Bad input of each kind, on each command: named with its file, counted by --skip-bad, nothing half-written."""

import json
import pickle

import numpy as np
import pytest

from agm.data.layouts import convert, load_layout, load_pickle, open_layout
from agm.data.layouts.stored import map_array
from agm.training.__main__ import main

from . import trees, trees_more


@pytest.fixture
def crema_d(tmp_path):
    for package in ("soundfile", "soxr", "PIL"):
        pytest.importorskip(package)
    return trees.crema_d(tmp_path / "CREMA-D")


def content_of(path):
    return pickle.loads(path.read_bytes())


def nan_signals(root):
    path = root / "UCI HAR Dataset/train/Inertial Signals/total_acc_x_train.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([" ".join(["nan"] * 128), *lines[1:]]))


def nan_windows(root):
    scipy_io = pytest.importorskip("scipy.io")
    values = scipy_io.loadmat(root / "data/acc_data.mat")["acc_data"]
    values[0, 7] = np.nan
    scipy_io.savemat(root / "data/acc_data.mat", {"acc_data": values})


@pytest.mark.parametrize(
    ("layout", "write", "spoil", "modality"),
    [
        ("uci-har", trees_more.uci_har, nan_signals, "acceleration"),
        ("unimib-shar", trees_more.unimib, nan_windows, "x"),
    ],
)
def test_nan_in_any_modality_is_named_and_counted(layout, write, spoil, modality, tmp_path):
    write(tmp_path)
    spoil(tmp_path)
    data = open_layout(tmp_path)
    with pytest.raises(ValueError, match=rf"Expected `{modality}` of '.* 0' in .* to be finite, but got NaN") as caught:
        load_layout(data)
    assert "--skip-bad" in str(caught.value)
    made = convert(data, tmp_path / "x.npz", skip_bad=True)
    assert len(made.bad) == 1
    assert sum(made.counts.values()) == len(data.samples) - 1


def labels_of_digits(root):
    np.save(root / "train_labels.npy", np.array([np.nan, 0.5, 12, -1, *(n % 10 for n in range(44))]))


def labels_of_activities(root):
    path = root / "UCI HAR Dataset/train/y_train.txt"
    path.write_text("\n".join(["nan", "1.5", "9", "0", *path.read_text().split()[4:]]))


def labels_of_windows(root):
    scipy_io = pytest.importorskip("scipy.io")
    values = scipy_io.loadmat(root / "data/acc_labels.mat")["acc_labels"].astype(float)
    values[:4, 0] = [np.nan, 1.5, 18, 0]
    scipy_io.savemat(root / "data/acc_labels.mat", {"acc_labels": values})


def labels_of_utterances(root):
    labels = np.load(root / "target/1/trn_label.npy")
    labels[:4] = [[np.nan] * 4, [0.5] * 4, [0] * 4, [np.inf, 0, 0, 0]]
    np.save(root / "target/1/trn_label.npy", labels)


def orders_of_clips(root):
    (root / "train_order.h5").unlink()
    trees.write_h5(root / "train_order.h5", {"order": np.array([np.nan, 1.5, 99, -1, 7, 0, 3])})


@pytest.mark.parametrize(
    ("layout", "write", "spoil"),
    [
        ("av-mnist", trees.av_mnist, labels_of_digits),
        ("uci-har", trees_more.uci_har, labels_of_activities),
        ("unimib-shar", trees_more.unimib, labels_of_windows),
        ("iemocap", trees_more.iemocap, labels_of_utterances),
        ("ave", trees.ave, orders_of_clips),
    ],
)
def test_numbers_that_are_no_labels(layout, write, spoil, tmp_path):
    if layout in ("iemocap", "ave"):
        pytest.importorskip("h5py")
    write(tmp_path)
    before = len(open_layout(tmp_path).skipped)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=r"Expected every sample of .* to be readable, but got"):
        open_layout(tmp_path)
    assert len(open_layout(tmp_path, skip_bad=True).skipped) == before + 4


@pytest.mark.parametrize("scheme", ["clean", "authors"])
def test_a_split_of_which_nothing_is_left(scheme, tmp_path):
    trees.av_mnist(tmp_path)
    np.save(tmp_path / "train_labels.npy", np.full(48, 12))
    layout = open_layout(tmp_path, skip_bad=True)
    assert "train" not in layout.arrange(scheme)
    with pytest.raises(ValueError, match="Expected samples of AV-MNIST in train and in test, but got none in train"):
        convert(layout, tmp_path / "out/x.npz", scheme=scheme, skip_bad=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_lists_whose_test_clips_are_missing_are_no_other_split(crema_d):
    for clip in (crema_d / "CREMAD/test.csv").read_text().split():
        (crema_d / "AudioWAV" / f"{clip.split(',')[0]}.wav").unlink(missing_ok=True)
    layout = open_layout(crema_d)
    assert set(layout.arrange()) == {"train"}  # and not actors, drawn anew
    with pytest.raises(ValueError, match="but got none in test"):
        load_layout(layout)


@pytest.mark.parametrize("read", [load_layout, lambda layout: convert(layout, layout.root / "x.npz")])
def test_shapes_that_differ_between_splits(read, tmp_path):
    trees.mosei_words(tmp_path)
    path = tmp_path / "valid_mels.p"
    trees.write_pickle(path, {key: values[:, :79] for key, values in content_of(path).items()})
    with pytest.raises(
        ValueError, match=r"Expected `audio` to have the shape \(60, 80\) in all samples, but got \(60, 79\)"
    ):
        read(open_layout(tmp_path))


def test_hidden_files_are_no_samples(tmp_path):
    pytest.importorskip("PIL")
    trees.kinetics_sounds_34(tmp_path)
    before = [sample.name for sample in open_layout(tmp_path).samples]
    frames = tmp_path / "visual/train_img/Image-01-FPS"
    for place in (frames / ".DS_Store", frames / "laughing/.DS_Store", frames / "laughing/trainvid20/._00000.jpg"):
        place.write_bytes(b"\0\0")
    layout = open_layout(tmp_path)
    assert [sample.name for sample in layout.samples] == before
    assert len(load_layout(layout).train) == 5


STAND_INS = {
    "nothing": (b"", "an empty file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "fetch the files with git lfs pull"),
    "a page": (b"\n<!DOCTYPE html><html>Sign in</html>", "a page of the web"),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_what_downloads_leave_in_the_place_of_files(name, crema_d, tmp_path):
    content, told = STAND_INS[name]
    layout = open_layout(crema_d)
    sample = layout.samples[0]
    for files in ([sample.files["audio"]], sorted(sample.files["visual"].iterdir())):
        before = [file.read_bytes() for file in files]
        for file in files:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=told) as caught:
            layout.read(sample)
        assert any(str(file) in str(caught.value) for file in files)
        assert "_io." not in str(caught.value)
        for file, bytes_before in zip(files, before, strict=True):
            file.write_bytes(bytes_before)
    readers = {"x.pkl": load_pickle, "x.npy": map_array}
    for file, read in readers.items():
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=told):
            read(tmp_path / file)


def test_folders_in_the_place_of_files(tmp_path, capsys):
    pytest.importorskip("PIL")
    trees.kinetics_sounds(tmp_path / "set")
    (tmp_path / "set/my_test.txt").unlink()
    (tmp_path / "set/my_test.txt").mkdir()
    assert main(["data", "inspect", str(tmp_path / "set")]) == 2
    assert f"Expected {tmp_path}/set/my_test.txt to be an ordinary file, but got a pipe, a device or a folder" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_names_of_activities_that_are_none(tmp_path):
    trees_more.uci_har(tmp_path)
    path = tmp_path / "UCI HAR Dataset/activity_labels.txt"
    path.write_text("one WALKING\n")
    with pytest.raises(ValueError, match=r"Expected lines of .*activity_labels\.txt to be a number and a name"):
        open_layout(tmp_path)


def test_recordings_that_are_empty(tmp_path, recwarn):
    trees_more.pamap2(tmp_path)
    path = sorted(tmp_path.rglob("*.dat"))[0]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"Expected .*\.dat to hold 54 numbers a line, but got: an empty file"):
        open_layout(tmp_path)
    assert not recwarn.list


@pytest.mark.parametrize("key", ["splits", "_data_files"])
def test_tables_that_lead_out_of_their_folder(key, tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in ("mine", "other"):
        splits = {split: datasets.Dataset.from_dict({"x": [[1.0]], "label": [0]}) for split in ("train", "test")}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / name)
    assert len(open_layout(tmp_path / "mine").samples) == 2
    place = tmp_path / "mine" / ("dataset_dict.json" if key == "splits" else "train/state.json")
    content = json.loads(place.read_text())
    if key == "splits":
        content[key][0] = "../other/train"
    else:
        content[key][0]["filename"] = "../../other/train/" + content[key][0]["filename"]
    place.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"Expected `{key}` in .*{place.name} to name what is in its folder, but got"):
        open_layout(tmp_path / "mine")


@pytest.mark.parametrize(
    "command",
    [
        ["data", "convert", "av-mnist", "set", "--output", "x.npz", "--split-file", "train=nothing.csv"],
        ["data", "build", "mfeat", "--from", "nothing.csv", "--output", "x.npz"],
        ["data", "build", "mfeat", "--from", "nothing.csv/x.whl", "--output", "x.npz"],
    ],
)
def test_files_that_are_not_there(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.av_mnist(tmp_path / "set")
    assert main(command) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "Errno" not in message
    assert "Expected nothing.csv" in message
