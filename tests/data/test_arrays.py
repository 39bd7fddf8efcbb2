"""Reading and writing datasets of the user's own."""

import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

import agm.data
from agm.data._npz import write_npz

SPLIT = np.array(["train", "test", "train", "validation", "train"])


def _arrays(**changes):
    """Five samples; a change to None takes the array away."""
    arrays = {
        "sound": np.arange(10, dtype=np.float64).reshape(5, 2) / 4,
        "text": np.arange(15, dtype=np.int32).reshape(5, 3),
        "target": np.array([0, 1, 2, 1, 1]),
        "split": SPLIT,
    }
    arrays.update(changes)
    return {key: values for key, values in arrays.items() if values is not None}


def _write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".pt":
        # torch stores no arrays of strings.
        torch.save({k: v.tolist() if v.dtype.kind == "U" else torch.from_numpy(v) for k, v in arrays.items()}, path)
    else:
        path.mkdir()
        for key, values in arrays.items():
            np.save(path / f"{key}.npy", values)
    return path


@pytest.mark.parametrize("container", ["set.npz", "set.pt", "set"])
def test_containers_hold_the_same_data(tmp_path, container):
    data = agm.data.load(_write(tmp_path / container, _arrays()))
    assert data.name == "set"
    assert data.modalities == ("sound", "text")
    assert data.class_names == ("0", "1", "2")
    assert data.train.target.tolist() == [0, 2, 1]
    assert data.validation.target.tolist() == [1]
    assert data.test.target.tolist() == [1]
    assert data.train.inputs["sound"].dtype == torch.float32
    assert data.train.inputs["sound"].tolist() == [[0.0, 0.25], [1.0, 1.25], [2.0, 2.25]]
    assert data.train.inputs["text"].dtype == torch.int64
    assert data.test.inputs["text"].tolist() == [[3, 4, 5]]


def test_folder_with_text_files(tmp_path):
    arrays = _arrays()
    np.save(tmp_path / "sound.npy", arrays["sound"])
    torch.save(torch.from_numpy(arrays["text"]), tmp_path / "text.pt")
    (tmp_path / "target.txt").write_text("cat\ndog\ncat\r\ndog\ndog\n")
    (tmp_path / "split.txt").write_text("\n".join(SPLIT))
    (tmp_path / "README.txt").write_text("not an array\n")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    data = agm.data.load(tmp_path)
    assert data.name == tmp_path.name
    assert data.class_names == ("cat", "dog")
    assert data.train.target.tolist() == [0, 0, 1]
    (tmp_path / "class_names.txt").write_text("dog\ncat\nbird\n")
    assert agm.data.load(tmp_path).train.target.tolist() == [1, 1, 0]
    assert agm.data.load(tmp_path).num_classes == 3
    (tmp_path / "target.txt").write_text("2\n1\n0\n1\n1\n")
    assert agm.data.load(tmp_path).train.target.tolist() == [2, 0, 1]


def test_a_scale_of_each_channel(tmp_path):
    image = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 2, 2)
    scale, offset = np.array([0.5, 1.0, 2.0]).reshape(3, 1, 1), np.array([-1.0, 0.0, 1.0]).reshape(3, 1, 1)
    arrays = _arrays(image=image, **{"image.scale": scale, "image.offset": offset})
    data = agm.data.load(_write(tmp_path / "set.npz", arrays))
    expected = (image * scale + offset)[SPLIT == "train"]
    np.testing.assert_array_equal(data.train.inputs["image"], expected)
    for wrong in (np.ones((2, 1, 1)), np.ones((1, 3, 1, 1, 1)), np.ones((0,)), np.array(["a"])):
        path = _write(tmp_path / "wrong.npz", {**arrays, "image.scale": wrong})
        with pytest.raises(
            ValueError, match=r"`image.scale` in .* to be one number, or numbers of each channel, but got"
        ):
            agm.data.load(path)


def test_dtypes_and_quantisation(tmp_path):
    codes = np.array([[0], [1], [2], [3], [255]], dtype=np.uint8)
    arrays = _arrays(
        sound=np.linspace(0, 1, 5, dtype=np.float16),
        raw=codes,
        flag=np.array([True, False, True, False, True]),
        fine=codes,
    )
    arrays.update({"fine.scale": np.float64(0.5), "fine.offset": np.array([-1.0]), "meta.id": np.array(["x"])})
    data = agm.data.load(_write(tmp_path / "set.npz", arrays))
    assert data.modalities == ("sound", "text", "raw", "flag", "fine")
    assert data.train.inputs["sound"].tolist() == [0.0, 0.5, 1.0]
    assert data.train.inputs["raw"].tolist() == [[0.0], [2.0], [255.0]]
    assert data.train.inputs["flag"].tolist() == [1.0, 1.0, 1.0]
    assert data.train.inputs["fine"].tolist() == [[-1.0], [0.0], [126.5]]
    floats = [m for m, values in data.train.inputs.items() if values.dtype == torch.float32]
    assert floats == ["sound", "raw", "flag", "fine"]


def test_quantised_halves_are_computed_in_double(tmp_path):
    sound = np.array([1.0, 2.0, 3.0, 4.0, 2048.0], dtype=np.float16)
    arrays = _arrays(sound=sound) | {"sound.scale": np.float64(0.125), "sound.offset": np.float64(70000.0)}
    data = agm.data.load(_write(tmp_path / "set.npz", arrays))
    # As float16 the offset is infinite, and 0.125 is below half a step of its largest numbers.
    assert data.train.inputs["sound"].tolist() == [70000.125, 70000.375, 70256.0]


def test_bfloat16_and_gradients_in_pt(tmp_path):
    sound = torch.tensor([1.5, 2.5, 3.5, 4.5, 5.5], dtype=torch.bfloat16, requires_grad=True)
    torch.save({"sound": sound, "target": [0, 0, 1, 1, 0], "split": [b.item() for b in SPLIT]}, tmp_path / "set.pt")
    assert agm.data.load(tmp_path / "set.pt").train.inputs["sound"].tolist() == [1.5, 3.5, 5.5]


def test_save_round_trip(tmp_path):
    # "file" is an argument of numpy.savez, and "b" before "a" shows that the order is kept.
    arrays = _arrays(sound=None, text=None, target=np.array(["y", "x", "x", "y", "y"]))
    arrays = {"file": np.random.default_rng(0).standard_normal((5, 2, 3)), "b": np.eye(5), **arrays}
    arrays["a"] = np.arange(5)
    write_npz(tmp_path / "first.npz", arrays)
    first = agm.data.load(tmp_path / "first.npz")
    second = agm.data.load(agm.data.save(first, tmp_path / "deep" / "second.npz"))
    assert second.name == "second"
    assert second.modalities == ("file", "b", "a")
    assert second.class_names == ("x", "y")
    for name, split in first.splits.items():
        assert torch.equal(split.target, second.splits[name].target)
        for modality, values in split.inputs.items():
            assert torch.equal(values, second.splits[name].inputs[modality])
            assert values.dtype == second.splits[name].inputs[modality].dtype
    agm.data.save(second, tmp_path / "third.npz")
    assert (tmp_path / "third.npz").read_bytes() == (tmp_path / "deep" / "second.npz").read_bytes()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["second.npz"]


def test_save_keeps_a_missing_validation_split_missing(tmp_path):
    data = agm.data.load(_write(tmp_path / "set.npz", _arrays(split=np.array(["train", "test"] * 2 + ["train"]))))
    assert data.validation is None
    assert agm.data.load(agm.data.save(data, tmp_path / "again.npz")).validation is None


def test_files_hold_no_clock(tmp_path):
    write_npz(tmp_path / "x.npz", {"a": np.arange(3)})
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]


def test_save_refuses(tmp_path):
    data = agm.data.load(_write(tmp_path / "set.npz", _arrays()))
    with pytest.raises(ValueError, match=r"`path` to end in .npz, but got 'x.pt'"):
        agm.data.save(data, tmp_path / "x.pt")
    part = agm.data.Split({"split": torch.zeros(1)}, torch.zeros(1).long())
    with pytest.raises(ValueError, match="other names than target, split, class_names, task, present, but got 'split'"):
        agm.data.save(agm.data.MultimodalData("x", part, part, None, ("c",)), tmp_path / "x.npz")
    short = agm.data.Split({"t": torch.zeros(1, 2)}, torch.zeros(1).long())
    long = agm.data.Split({"t": torch.zeros(1, 3)}, torch.zeros(1).long())
    with pytest.raises(ValueError, match=r"rows of one shape in all splits, but got \[\(2,\), \(3,\)\]"):
        agm.data.save(agm.data.MultimodalData("x", short, long, None, ("c",)), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


LABELS = np.array(["a", "b", "a", "b", "a"])
REFUSED = {
    "no target": ({"target": None}, "to hold `target`, but got sound, text, split. Add one label per sample"),
    "no split": ({"split": None}, 'to hold `split`, but got sound, text, target. Add "train"'),
    "target named labels": ({"target": None, "labels": np.arange(5)}, "split, labels. Rename `labels` to `target`"),
    "split named fold": ({"split": None, "Fold": np.arange(5)}, "Fold. Rename `Fold` to `split`"),
    "an array per split": (
        {"target": None, "sound_train": np.zeros(5), "sound_test": np.zeros(5)},
        "one array per modality and one `target`, and add `split`",
    ),
    "no modality": ({"sound": None, "text": None}, "at least one modality, but got target, split"),
    "short modality": ({"sound": np.zeros((4, 2))}, "`sound` in .* to have 5 rows.*but got 4"),
    "short split": ({"split": SPLIT[:4]}, "`split` in .* to have 5 rows.*but got 4"),
    "NaN": ({"sound": np.array([0, 1, np.nan, np.inf, 2])}, "`sound` .* NaN or infinity .* in 2 rows, first in row 2"),
    "overflow": ({"sound": np.array([0, 1, 1e39, 0, 2])}, "`sound` .* finite.* in 1 rows, first in row 2"),
    "complex": ({"sound": np.zeros(5, dtype=complex)}, "`sound` in .* real numbers.*complex128"),
    "tables of strings": ({"sound": np.full((5, 2), "a")}, "`sound` in .* real numbers.*meta.SOMETHING"),
    "empty strings": ({"sound": np.full(5, "")}, "`sound` in .* to hold text, but got empty strings alone"),
    "other encodings": ({"sound": np.array([b"a"] * 4 + [b"\xe9t"])}, "`sound` in .* UTF-8, but got bytes in row 4"),
    "scalar modality": ({"rate": np.array(8000)}, r"`rate` in .* one row a sample.*shape \(\)"),
    "unknown split": ({"split": np.array([*SPLIT[:4], "dev"])}, r"`split` in .* got \['dev'\]"),
    "split called val": ({"split": np.array([*SPLIT[:4], "val"])}, """got \\['val'\\]. Write "validation" for 'val'"""),
    "split with capitals": (
        {"split": np.array(["Train", "Val", *SPLIT[2:]])},
        """Write "train" for 'Train', "validation" for 'Val'""",
    ),
    "split of any name": ({"split": np.array([*SPLIT[:3], "val", "x"])}, r"got \['val', 'x'\]. Correct these entries"),
    "split of integers": ({"split": np.arange(5)}, r"`split` in .* got \[0, 1, 2\]"),
    "split of two dimensions": ({"split": SPLIT[:, None]}, r"`split` in .* got \(5, 1\)"),
    "no test": ({"split": np.array(["train"] * 5)}, '"train" and as "test", but got none as "test"'),
    "no train": ({"split": np.array(["test"] * 5)}, 'but got none as "train"'),
    "new test label": ({"target": np.array(["a", "c", "a", "b", "b"])}, "2 classes of the training.*'c' in row 1"),
    "label without a name": (
        {"target": LABELS, "class_names": np.array(["a", "z"])},
        "the 2 classes of class_names, but got 'b' in row 1",
    ),
    "index without a name": (
        {"class_names": np.array(["a", "b"])},
        "the 2 classes of class_names, but got 2 in row 2",
    ),
    "negative label": ({"target": np.array([0, 1, 1, -1, 1])}, "the training labels, but got -1 in row 3"),
    "new test index": ({"target": np.array([0, 3, 1, 1, 1])}, "the 2 classes .* got 3 in row 1"),
    "identifiers for labels": ({"target": np.array([0, 0, 10**12, 0, 0])}, "counted from 0, but got 1000000000000"),
    "float labels": ({"target": np.zeros(5)}, '`target` in .* but got float64 .* Add `task` = "numbers"'),
    "labels as integers": ({"target": np.eye(5, 3, dtype=int)}, 'integers 0 and 1 with `task` = "labels"'),
    "labels as floats": ({"target": np.eye(5, 3)}, 'Of labels, store true and false, .* else add `task` = "numbers"'),
    "one-hot classes": ({"target": np.eye(5)}, r"\(one-hot\), store target.argmax\(1\). Of several labels"),
    "unknown task": ({"task": np.array("regression")}, "`task` in .* one of classes, labels, numbers.*'regression'"),
    "labels of another task": ({"task": np.array("labels")}, r"`target` in .* of shape \(5,\) for task labels"),
    "no number": (
        {"target": np.array([0.5, np.nan, 1, 1, np.inf])},
        "`target` in .* finite.* in 2 rows, first in row 1",
    ),
    "names of other labels": (
        {"target": np.eye(5, dtype=bool), "class_names": np.array(["a", "b"])},
        "`class_names` in .* 5 distinct names, one of the labels",
    ),
    "one-hot labels": ({"target": np.eye(5, dtype=int)}, r"`target` in .* of shape \(5, 5\)"),
    "dotted name": ({"sound.x": np.zeros(5)}, "a name with a dot .* got 'sound.x'"),
    "scale of nothing": ({"other.scale": np.ones(())}, "a name with a dot .* got 'other.scale'"),
    "scale a row": (
        {"sound.scale": np.ones(5)},
        r"`sound.scale` in .* to be one number, or numbers of each channel, but got .* \(5,\)",
    ),
    "class named twice": ({"class_names": np.array(["a", "b", "a"])}, "one distinct name a class"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_load_refuses(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        agm.data.load(_write(tmp_path / "set.npz", _arrays(**changes)))
    assert str(caught.value).startswith("Expected ")


class _Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file ran code",))


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "set.npz", **_arrays(sound=np.array([_Bomb()] * 5, dtype=object)))
    with pytest.raises(ValueError, match=r"set.npz to be a readable .npz file.*[Oo]bject"):
        agm.data.load(tmp_path / "set.npz")
    torch.save(_arrays(sound=_Bomb()), tmp_path / "set.pt")
    with pytest.raises(ValueError, match=r"set.pt to be a readable .pt file.*pickled objects"):
        agm.data.load(tmp_path / "set.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sound.npy").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match=r"sound.npy to be a readable .npy file"):
        agm.data.load(tmp_path / "folder")


def test_a_folder_of_other_files(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\na.png,cat\n")
    with pytest.raises(ValueError, match=r"but got nothing. Give one .npz file of arrays, or a folder with one .npy"):
        agm.data.load(tmp_path)


def test_ragged_rows_in_pt(tmp_path):
    torch.save({"sound": [[1.0], [1.0, 2.0]], "target": [0, 0], "split": ["train", "test"]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"`sound` in .* rows of different lengths. Pad"):
        agm.data.load(tmp_path / "x.pt")


@pytest.mark.parametrize("container", ["set.npz", "set.pt"])
def test_damaged_files(tmp_path, container):
    path = _write(tmp_path / container, _arrays())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{re.escape(container)} to be a readable"):
        agm.data.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=rf"{re.escape(container)} to be a readable"):
        agm.data.load(path)


def test_pt_without_names(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="to hold a dict of arrays by name, but got list"):
        agm.data.load(tmp_path / "x.pt")


def test_two_files_of_one_name(tmp_path):
    folder = _write(tmp_path / "set", _arrays())
    (folder / "target.txt").write_text("0\n")
    with pytest.raises(ValueError, match="to hold `target` once"):
        agm.data.load(folder)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="got nothing there"):
        agm.data.load(tmp_path / "absent.npz")
    (tmp_path / "set.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"to end in .npz or .pt, but got '.csv'"):
        agm.data.load(tmp_path / "set.csv")
    with pytest.raises(ValueError, match=r"a known dataset .av-digits, avt-digits, clipart, .* but got 'av-digts'"):
        agm.data.load("av-digts")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="to hold `target`, but got nothing"):
        agm.data.load(tmp_path / "empty")


def test_text_becomes_utf8(tmp_path):
    texts = ["Hund", "", "日本", "a", "Käse"]
    path = _write(tmp_path / "set.npz", _arrays() | {"title": np.array(texts)})
    data = agm.data.load(path)
    values = torch.cat([split.inputs["title"] for split in data.splits.values()])
    assert values.dtype == torch.uint8
    assert values.shape == (5, 6)
    assert {bytes(row.tolist()).rstrip(b"\0").decode() for row in values} == set(texts)
    # Back again with equal shapes, whatever room there was.
    wide = _write(tmp_path / "wide.npz", _arrays() | {"title": np.array([t.encode() for t in texts], dtype="S20")})
    first = agm.data.load(wide)
    again = agm.data.load(agm.data.save(first, tmp_path / "again.npz"))
    assert again.train.inputs["title"].shape[1] == 20
    for name, split in first.splits.items():
        assert torch.equal(split.inputs["title"], again.splits[name].inputs["title"])


@pytest.mark.parametrize(
    ("target", "more", "task", "outputs"),
    [
        (np.eye(5, 3, dtype=bool), {}, "labels", 3),
        (np.eye(5, 3, dtype=int), {"task": np.array("labels")}, "labels", 3),
        (np.linspace(-1, 2, 5), {}, "numbers", 1),
        (np.arange(10.0).reshape(5, 2), {"task": np.array(b"numbers")}, "numbers", 2),
        (np.arange(5), {"task": np.array("numbers")}, "numbers", 1),
    ],
)
def test_other_tasks(tmp_path, target, more, task, outputs):
    data = agm.data.load(_write(tmp_path / "set.npz", _arrays() | {"target": target} | more))
    assert data.task == task
    assert data.num_classes == outputs
    again = agm.data.load(agm.data.save(data, tmp_path / "again.npz"))
    for name, split in data.splits.items():
        expected = torch.from_numpy(target[name == SPLIT].reshape(len(split), -1))
        assert torch.equal(split.target, expected.to(split.target.dtype))
        assert torch.equal(again.splits[name].target, split.target)
