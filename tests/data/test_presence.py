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
            "every sample to have a modality, but got none in",
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
