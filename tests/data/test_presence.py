"""Samples that lack a modality: in splits, in files, and in what is selected and saved."""

import numpy as np
import pytest
import torch

import agm.data
from agm.data import MultimodalData, Split

PRESENT = np.array([[1, 1], [0, 1], [1, 0], [1, 1], [0, 1], [1, 0]], dtype=bool)
SPLIT = np.array(["train", "train", "train", "test", "test", "test"])
SOUND = np.arange(1.0, 13).reshape(6, 2)


def written(path, **changes):
    sound = np.where(PRESENT[:, :1], SOUND, np.nan)
    arrays = {"sound": sound, "text": np.array(["aa", "b", "??", "cc", "d", "!!"]), "present": PRESENT}
    arrays |= {"target": np.array([0, 1, 0, 1, 0, 1]), "split": SPLIT} | changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def test_what_is_lacking_is_zero_and_known(tmp_path):
    data = agm.data.load(written(tmp_path / "x.npz"))
    assert not data.complete
    assert data.train.present.tolist() == PRESENT[:3].tolist()
    assert data.train.inputs["sound"].tolist() == [[1, 2], [0, 0], [5, 6]]
    assert data.train.inputs["text"].tolist() == [[97, 97], [98, 0], [0, 0]]
    again = agm.data.load(agm.data.save(data, tmp_path / "again.npz"))
    for split, own in zip(data.splits.values(), again.splits.values(), strict=True):
        assert torch.equal(split.present, own.present)
        assert all(torch.equal(split.inputs[name], own.inputs[name]) for name in data.modalities)


def test_a_column_of_each_modality_says_the_same(tmp_path):
    own = {"present": None, "sound.present": PRESENT[:, 0], "text.present": PRESENT[:, 1].astype(np.int64)}
    one, two = agm.data.load(written(tmp_path / "x.npz")), agm.data.load(written(tmp_path / "y.npz", **own))
    assert torch.equal(one.train.present, two.train.present)
    assert torch.equal(one.test.inputs["sound"], two.test.inputs["sound"])
    only = agm.data.load(written(tmp_path / "z.npz", present=None, **{"sound.present": PRESENT[:, 0]}))
    assert only.train.present.tolist() == [[True, True], [False, True], [True, True]]


def test_quantised_values_that_are_lacking_are_zero_too(tmp_path):
    stored = {"sound": np.full((6, 2), 7, dtype=np.int8), "sound.offset": np.array(3.0), "sound.scale": np.array(2.0)}
    data = agm.data.load(written(tmp_path / "x.npz", **stored))
    assert data.train.inputs["sound"].tolist() == [[17, 17], [0, 0], [17, 17]]


def test_samples_without_any_of_the_chosen_modalities_are_left_out(tmp_path):
    path = written(tmp_path / "x.npz")
    for data in (agm.data.load(path, ["sound"]), agm.data.load(path).select(["sound"])):
        assert data.complete
        assert data.train.inputs["sound"].tolist() == [[1, 2], [5, 6]]
        assert data.test.target.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"samples of .* for test that have one of the modalities sound, but got none"):
        agm.data.load(written(tmp_path / "y.npz", present=PRESENT & (np.arange(6) < 3)[:, None] | [0, 1]), ["sound"])


def test_all_present_is_the_same_as_nothing_said(tmp_path):
    data = agm.data.load(written(tmp_path / "x.npz", sound=SOUND, present=np.ones((6, 2), bool)))
    assert data.complete
    assert data.train.present is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"present": PRESENT[:, :1]}, r"`present` in .* bool of shape \(6, 2\).*got bool of shape \(6, 1\)"),
        ({"present": PRESENT * 2}, r"`present` in .* but got int64"),
        ({"present": PRESENT * 1.0}, r"`present` in .* but got float64"),
        ({"sound.present": PRESENT[:, 0]}, "`present` or `sound.present`, but got both"),
        ({"present": None, "sound.present": PRESENT}, r"`sound.present` in .* of shape \(6,\)"),
        ({"present": None, "video.present": PRESENT[:, 0]}, "a name with a dot .* got 'video.present'"),
        ({"present": None}, r"`sound` .* NaN .* lack the modality, say so: sound.present, \(N,\) bool"),
        (
            {"present": np.array([[1, 1], [0, 0], *PRESENT[2:]], bool)},
            "every sample of .* to have a modality, but got none in 1 rows, first in row",
        ),
        ({"sound": SOUND[:4]}, "`sound` in .* to have 6 rows"),
    ],
)
def test_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        agm.data.load(written(tmp_path / "x.npz", **changes))


def test_a_split_by_hand():
    inputs, target = {"a": torch.ones(3, 2), "b": torch.ones(3, 1)}, torch.tensor([0, 1, 0])
    split = Split(inputs, target, torch.tensor([[True, False], [True, True], [False, True]]))
    assert split.inputs["b"].flatten().tolist() == [0, 1, 1]
    assert inputs["b"].sum() == 3  # the caller's own
    assert split.take(torch.tensor([2, 0])).present.tolist() == [[False, True], [True, False]]
    assert split.take(slice(1, 2)).present is None
    data = MultimodalData("x", split, split, None, ("no", "yes"))
    assert data.select(["b"]).train.target.tolist() == [1, 0]
    for wrong in (torch.ones(3, 2), torch.ones(3, 1, dtype=torch.bool), [[True]]):
        with pytest.raises(ValueError, match=r"`present` to be bool of shape \(3, 2\)"):
            Split(inputs, target, wrong)


def test_splits_whose_modalities_stand_in_another_order(tmp_path):
    """A column of `present` belongs to a modality, whatever its place."""
    present, target = torch.from_numpy(PRESENT), torch.tensor([0, 1, 0, 1, 0, 1])
    inputs = {"sound": torch.from_numpy(SOUND).float(), "image": 10 + torch.from_numpy(SOUND).float()}
    train = Split(inputs, target, present)
    test = Split({name: inputs[name] for name in ("image", "sound")}, target, present.flip(1))
    data = MultimodalData("mine", train, test, test, ("a", "b"))
    again = agm.data.load(agm.data.save(data, tmp_path / "x.npz"))
    for found in (*data.splits.values(), *again.splits.values()):
        assert list(found.inputs) == ["sound", "image"]
        assert torch.equal(found.present, present)
        assert torch.equal(found.inputs["sound"], train.inputs["sound"])
        assert torch.equal(found.inputs["image"], train.inputs["image"])


@pytest.mark.parametrize("modalities", [[], ["sound", "sound"], ["sonud"]])
def test_a_choice_of_modalities_that_cannot_be(tmp_path, modalities):
    with pytest.raises(ValueError, match="`modalities` to be among sound, text, once each"):
        agm.data.load(written(tmp_path / "x.npz")).train.select(modalities)


def test_a_validation_split_does_not_vanish(tmp_path):
    present = PRESENT | [[False, True]]
    present[2] = [False, True]
    split = np.array(["train", "train", "validation", "test", "test", "test"])
    path = written(tmp_path / "x.npz", present=present, split=split)
    assert len(agm.data.load(path).validation) == 1
    with pytest.raises(ValueError, match=r"samples of .* for validation that have one of the modalities sound"):
        agm.data.load(path, ["sound"])


def test_presence_in_a_text_file_is_not_passed_over(tmp_path):
    for name, values in {"sound": SOUND, "image": SOUND, "target": np.arange(6) % 2, "split": SPLIT}.items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "README.txt").write_text("of sounds")
    assert agm.data.load(tmp_path).complete
    (tmp_path / "sound.present.txt").write_text("1\n0\n1\n1\n0\n1\n")
    with pytest.raises(ValueError, match=r"sound\.present\.txt to be a \.npy or \.pt file, but got text"):
        agm.data.load(tmp_path)
