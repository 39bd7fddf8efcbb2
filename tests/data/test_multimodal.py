"""Split and MultimodalData: what they hold and what they refuse."""

import pytest
import torch

from agm.data import MultimodalData, Split

NAN, INF = float("nan"), float("inf")


def _split(n=3, **inputs):
    return Split(inputs or {"a": torch.zeros(n, 2), "b": torch.ones(n, 4, dtype=torch.int64)}, torch.arange(n))


def _data(**changes):
    parts = {"name": "x", "train": _split(), "test": _split(2), "validation": None, "class_names": ("u", "v", "w")}
    return MultimodalData(**{**parts, **changes})


def test_properties():
    data = _data(validation=_split(1))
    assert data.modalities == ("a", "b")
    assert data.num_classes == 3
    assert list(data.splits) == ["train", "validation", "test"]
    assert [len(split) for split in data.splits.values()] == [3, 1, 2]
    assert list(_data().splits) == ["train", "test"]


@pytest.mark.parametrize(
    ("inputs", "target", "error", "message"),
    [
        ({}, torch.zeros(1).long(), ValueError, "`inputs` to be a mapping with at least one modality"),
        ({"a": torch.zeros(2)}, torch.zeros(1).long(), ValueError, r"`a` to have 1 rows.*got shape \(2,\)"),
        ({"a": torch.zeros(())}, torch.zeros(1).long(), ValueError, r"`a` to have 1 rows.*got shape \(\)"),
        ({"a": torch.zeros(1).double()}, torch.zeros(1).long(), TypeError, "`a` to be a float32.*float64"),
        ({"a": [1.0]}, torch.zeros(1).long(), TypeError, "`a` to be a float32 tensor.*got list"),
        ({"a.b": torch.zeros(1)}, torch.zeros(1).long(), ValueError, "without dots.*'a.b'"),
        ({"target": torch.zeros(1)}, torch.zeros(1).long(), ValueError, "other than 'target'"),
        ({"a": torch.zeros(1)}, torch.zeros(1).double(), TypeError, "`target` to be an int64 tensor.*float64"),
        ({"a": torch.zeros(1)}, torch.zeros(1), ValueError, r"`target` to be of shape \(N, K\).*\(1,\)"),
        ({"a": torch.zeros(1)}, torch.tensor([[torch.nan]]), ValueError, "`target` to be finite"),
        ({"a": torch.zeros(1, 3, 3).byte()}, torch.zeros(1).long(), ValueError, r"text \(N, T\) where it is uint8"),
        ({"a": torch.zeros(1)}, [0], TypeError, "`target` to be an int64 tensor.*list"),
        ({"a": torch.zeros(0)}, torch.zeros(0).long(), ValueError, "`target`.*at least one sample"),
        ({"a": torch.zeros(1)}, torch.zeros(1, 1).long(), ValueError, r"`target`.*\(1, 1\)"),
        (
            {"a": torch.tensor([[0.0, 1.0], [0.0, NAN], [INF, 0.0]])},
            torch.zeros(3).long(),
            ValueError,
            "`a` to be finite, but got NaN or infinity in 2 samples, first in sample 1",
        ),
    ],
)
def test_split_refuses(inputs, target, error, message):
    with pytest.raises(error, match=message):
        Split(inputs, target)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"class_names": ("u", "v")}, ValueError, r"`target` of `train`.*in \[0, 2\), but got 2"),
        ({"class_names": ()}, ValueError, "`class_names` to be one distinct name"),
        ({"class_names": ("u", "v", "u")}, ValueError, "`class_names` to be one distinct name"),
        ({"test": _split(2, a=torch.zeros(2, 2))}, ValueError, r"`test` to have the modalities \['a', 'b'\]"),
        (
            {"validation": _split(1, a=torch.zeros(1, 2), b=torch.zeros(1, 4))},
            ValueError,
            "`b` of `validation` to be torch.int64 as in `train`, but got torch.float32",
        ),
        ({"test": None}, TypeError, "`test` to be a Split, but got NoneType"),
        (
            {"test": Split(_split(1).inputs, torch.tensor([-1]))},
            ValueError,
            r"`target` of `test`.*in \[0, 3\), but got -1",
        ),
    ],
)
def test_data_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        _data(**changes)


def test_batches_of_a_split_are_all_its_samples_in_order():
    split = Split({"a": torch.arange(7.0).unsqueeze(1), "b": torch.arange(7)}, torch.arange(7) % 3)
    batches = list(split.batches(3))
    assert [len(target) for _, target in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([target for _, target in batches]), split.target)
    for name, values in split.inputs.items():
        assert torch.equal(torch.cat([inputs[name] for inputs, _ in batches]), values)
    with pytest.raises(ValueError, match="`size` to be 1 or more, but got 0"):
        next(split.batches(0))
