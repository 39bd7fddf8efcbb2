"""Splits by lists: names as others write them, groups, and what is refused."""

import json
import pickle

import numpy as np
import pytest

from agm.data.layouts import convert, open_layout, split_by_lists
from agm.training.__main__ import main

from . import trees, trees_more


@pytest.fixture
def crema_d(tmp_path, monkeypatch):
    for package in ("soundfile", "soxr", "PIL"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    return trees.crema_d(tmp_path / "CREMA-D")


CLIPS = {
    "train": ["1001_DFA_NEU_XX", "1002_IEO_NEU_XX", "1001_IOM_HAP_XX"],
    "validation": ["1003_IOM_NEU_XX"],
    "test": ["1003_DFA_ANG_XX", "1002_DFA_HAP_XX"],
}
FORMS = {
    "names": "{}",
    "comma and label": "{},NEU",
    "path and label": "AudioWAV/{}.wav 3",
    "path on Windows": "D:\\crema\\{}.wav\t3",
    "as AVE": "Anger&{}&good&0&10",
    "quoted": '"{}","NEU"',
}


def names(listed):
    return {split: [sample.name for sample in samples] for split, samples in listed.splits.items()}


@pytest.mark.parametrize("form", FORMS)
def test_lists_in_any_form(form, crema_d, tmp_path):
    layout = open_layout(crema_d)
    for split, clips in CLIPS.items():
        lines = ["name,label", *(FORMS[form].format(clip) for clip in [*clips, clips[0]]), ""]
        (tmp_path / f"{split}.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    listed = split_by_lists(layout, [f"train={tmp_path}/train.csv", "val=validation.csv", "TEST=test.csv"])
    assert names(listed) == CLIPS
    assert listed.unlisted == 22 - 6


def test_one_file_with_all(crema_d, tmp_path):
    layout = open_layout(crema_d)
    short = {"train": "train", "validation": "val", "test": "test"}
    (tmp_path / "x.json").write_text(json.dumps({short[split]: clips for split, clips in CLIPS.items()}))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(CLIPS))
    rows = [f"{clip},{short[split]}" for split, clips in CLIPS.items() for clip in clips]
    (tmp_path / "x.csv").write_text("\n".join(["name,split", *rows]))
    for name in ("x.json", "x.pkl", "x.csv"):
        assert names(split_by_lists(layout, [name])) == CLIPS
    (tmp_path / "y.json").write_text(json.dumps(CLIPS["train"]))
    assert names(split_by_lists(layout, ["train=y.json"])) == {"train": CLIPS["train"]}


def test_groups_stand_for_their_samples(crema_d, tmp_path):
    layout = open_layout(crema_d)
    (tmp_path / "train.txt").write_text("1001\n1003\n")
    (tmp_path / "test.txt").write_text("1002\n")
    listed = split_by_lists(layout, ["train=train.txt", "test=test.txt"])
    assert {sample.group for sample in listed.splits["train"]} == {"1001", "1003"}
    assert {sample.group for sample in listed.splits["test"]} == {"1002"}
    assert listed.unlisted == 0


def test_a_label_is_no_name(tmp_path):
    """Persons of UCI HAR are numbers, and so are labels."""
    layout = open_layout(trees_more.uci_har(tmp_path))
    group = layout.samples[0].group
    (tmp_path / "train.csv").write_text(f"nobody,{group}\n")
    with pytest.raises(ValueError, match=r"Expected line 1 of .*train\.csv to name a sample of UCI"):
        split_by_lists(layout, [f"train={tmp_path}/train.csv"])


def test_convert_by_lists(crema_d, tmp_path, capsys):
    (tmp_path / "train.csv").write_text("1001_DFA_NEU_XX\n1003_IEO_HAP_XX\n1002_IEO_NEU_XX\nnobody\n")
    (tmp_path / "test.csv").write_text("1003_DFA_ANG_XX\n")
    command = ["data", "convert", "crema-d", "CREMA-D", "--set", "size=8", "--output", "x.npz"]
    command += ["--split-file", "train=train.csv", "--split-file", "test=test.csv"]
    assert main(command) == 2
    assert "Expected line 4 of train.csv to name a sample of CREMA-D, such as '1001_DFA_NEU_XX', but got 'nobody'" in (
        message := " ".join(capsys.readouterr().err.split())
    )
    assert "--skip-bad" in message
    assert not (tmp_path / "x.npz").exists()
    assert main([*command, "--skip-bad"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "CREMA-D: 2 train, 1 test" in output
    assert "left out, which no list names: 19" in output
    assert "listed, but without files: 1, such as 1003_IEO_HAP_XX" in output
    assert "listed, but no samples of this set: 1 'nobody' in line 4 of train.csv" in output
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["meta.name"][:2].tolist() == ["1001_DFA_NEU_XX", "1002_IEO_NEU_XX"]
        assert stored["meta.layout"][1] == "lists"
    assert main([*command, "--split", "actors"]) == 2
    assert "Expected one of --split and --split-file, but got both" in capsys.readouterr().err


BAD = {
    "in two splits": (
        {"train": "1001_DFA_NEU_XX", "test": "1001_DFA_NEU_XX"},
        "'1001_DFA_NEU_XX' in train and, by line 1",
    ),
    "an actor and his clip": ({"train": "1001", "test": "1001_DFA_NEU_XX"}, "Expected each sample in one split alone"),
    "no split": ({"": "1001_DFA_NEU_XX"}, "to end in the name of a split"),
    "another split": ({"dep": "1001_DFA_NEU_XX"}, "Expected --split-file to be train=FILE"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists(name, crema_d, tmp_path):
    content, message = BAD[name]
    given = []
    for split, text in content.items():
        (tmp_path / f"list{split}.txt").write_text(text)
        given.append(f"{split}=list{split}.txt" if split else "list.txt")
    with pytest.raises(ValueError, match="Expected") as caught:
        split_by_lists(open_layout(crema_d), given)
    assert message in str(caught.value)


def test_files_that_are_no_lists(crema_d, tmp_path):
    layout = open_layout(crema_d)
    (tmp_path / "x.json").write_text('{"fold0": {"train": []}}')
    with pytest.raises(ValueError, match=r"x\.json to hold .* but got the keys fold0"):
        split_by_lists(layout, ["x.json"])
    (tmp_path / "y.json").write_text('{"train": ')
    with pytest.raises(ValueError, match=r"Expected y\.json to be JSON"):
        split_by_lists(layout, ["y.json"])
    (tmp_path / "z.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ValueError, match=r"Expected z\.pkl to be a pickle"):
        split_by_lists(layout, ["z.pkl"])
    assert not (tmp_path / "ran").exists()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="Expected samples of CREMA-D in train and in test, but got none in train"):
        convert(layout, tmp_path / "x.npz", splits=split_by_lists(layout, ["train=empty.txt"]).splits)
    with pytest.raises(FileNotFoundError):
        split_by_lists(layout, ["train=nothing.txt"])
