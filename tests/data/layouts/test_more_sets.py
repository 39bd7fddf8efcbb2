"""Images with texts, stored features and recordings by sensors: counts, labels, shapes, skipped files, splits."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import agm.data
from agm.data.layouts import LAYOUTS, convert, load_layout, open_layout, recognise
from agm.data.layouts.text import clean_title, encode_text
from agm.data.layouts.windows import read_numbers
from agm.models import TextEncoder
from agm.training import Config, train

from . import trees, trees_more
from .test_sets import SETS, Expected

OWN = {"clean": {"train": 3, "validation": 3, "test": 3}, "authors": {"train": 3, "validation": 3, "test": 3}}
MORE = {
    "food-101": Expected(
        trees_more.food_101,
        {"image": (3, 224, 224), "text": (40,)},
        {"clean": {"train": 7, "test": 4}, "authors": {"train": 7, "test": 4}},
        ("apple_pie", "waffles"),
        {"waffles/waffles_2.jpg": "no image"},
        ("PIL",),
    ),
    "food-101-json": Expected(
        trees_more.food_101_json,
        {"image": (3, 224, 224), "text": (50,)},
        {"clean": {"train": 4, "validation": 2, "test": 2}, "authors": {"train": 4, "validation": 2, "test": 2}},
        ("apple_pie", "waffles"),
        needs=("PIL",),
    ),
    "twitter-15": Expected(
        trees_more.twitter_15,
        {"image": (3, 224, 224), "text": (40,)},
        OWN,
        ("negative", "neutral", "positive"),
        {"missing.jpg": "no image"},
        ("PIL",),
    ),
    "sarcasm": Expected(
        trees_more.sarcasm,
        {"image": (3, 224, 224), "text": (40,)},
        OWN,
        ("not sarcastic", "sarcastic"),
        {"103.jpg": "no image"},
        ("PIL",),
    ),
    "iemocap": Expected(
        trees_more.iemocap,
        {"audio": (350, 130), "vision": (50, 342), "text": (22, 1024)},
        {"clean": {"train": 6, "validation": 3, "test": 2}, "authors": {"train": 6, "validation": 3, "test": 2}},
        ("class 0", "class 1", "class 2", "class 3"),
        {"Ses02F_tst1": "no vision"},
        ("h5py",),
    ),
    "balanced-av": Expected(
        trees_more.balanced_av,
        {"audio": (1, 257, 299), "visual": (3, 3, 224, 224)},
        {"clean": {"train": 4, "test": 3}, "authors": {"train": 4, "test": 3}},
        ("dog", "cat"),
        {"clip3_-": "no sound file"},
        ("h5py", "PIL"),
    ),
    "uci-har": Expected(
        trees_more.uci_har,
        {"acceleration": (3, 128), "body": (3, 128), "gyroscope": (3, 128)},
        {"clean": {"train": 8, "validation": 4, "test": 6}, "authors": {"train": 12, "test": 6}},
        ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING"),
    ),
    "pamap2": Expected(
        trees_more.pamap2,
        {"acceleration": (9, 171), "gyroscope": (9, 171), "magnetometer": (9, 171)},
        {"clean": {"train": 4, "validation": 2, "test": 2}, "random": {"train": 6, "validation": 1, "test": 1}},
        (),
    ),
    "wisdm": Expected(
        trees_more.wisdm,
        {"x": (1, 90), "y": (1, 90), "z": (1, 90)},
        {"clean": {"train": 2, "validation": 2, "test": 2}, "random": {"train": 4, "validation": 1, "test": 1}},
        ("Downstairs", "Jogging", "Sitting", "Standing", "Upstairs", "Walking"),
    ),
    "opportunity": Expected(
        trees_more.opportunity,
        {"acceleration": (15, 36), "gyroscope": (15, 36), "magnetometer": (15, 36)},
        {"clean": {"train": 2, "validation": 2, "test": 2}, "random": {"train": 4, "validation": 1, "test": 1}},
        (),
    ),
    "unimib-shar": Expected(
        trees_more.unimib,
        {"x": (1, 151), "y": (1, 151), "z": (1, 151)},
        {"clean": {"train": 6, "validation": 2, "test": 2}, "random": {"train": 8, "validation": 1, "test": 1}},
        tuple(f"activity {number}" for number in range(1, 18)),
        needs=("scipy",),
    ),
    "usc-had": Expected(
        trees_more.usc_had,
        {"acceleration": (3, 128), "gyroscope": (3, 128)},
        {"clean": {"train": 12, "validation": 6, "test": 6}, "random": {"train": 20, "validation": 2, "test": 2}},
        (),
        needs=("scipy",),
    ),
}


def opened(name, root, **options):
    expected = MORE[name]
    for package in expected.needs:
        pytest.importorskip(package)
    expected.write(root)
    return open_layout(root, **options)


@pytest.mark.parametrize("name", MORE)
def test_a_set_is_recognised_and_read(name, tmp_path):
    expected = MORE[name]
    layout = opened(name, tmp_path)
    assert (recognise(tmp_path).name, layout.name) == (name, name)
    if expected.classes:
        assert layout.class_names == expected.classes
    assert {skipped.name: skipped.reason for skipped in layout.skipped} == expected.skipped
    made = {scheme: layout.arrange(scheme) for scheme in layout.schemes}
    found = {scheme: {split: len(samples) for split, samples in splits.items()} for scheme, splits in made.items()}
    assert found == expected.splits
    for training in (False, True):
        values = layout.read(layout.samples[0], training=training, generator=torch.Generator().manual_seed(0))
        assert tuple(values) == layout.modalities
        assert {modality: tuple(value.shape) for modality, value in values.items()} == expected.shapes
    # Into a process that shares nothing, after files have been opened.
    copy = pickle.loads(pickle.dumps(layout)).read(layout.samples[0])
    assert all(torch.equal(value, copy[modality]) for modality, value in layout.read(layout.samples[0]).items())
    groups = [{sample.group for sample in samples} for samples in made["clean"].values()]
    if "random" in expected.splits:  # whole persons
        assert sum(map(len, groups)) == len(set.union(*groups)) >= 3
    assert load_layout(layout).class_names == layout.class_names


HAR = ["uci-har", "pamap2", "wisdm", "opportunity", "unimib-shar", "usc-had"]


@pytest.mark.parametrize("name", HAR)
def test_windows_with_steps_first(name, tmp_path):
    channels = opened(name, tmp_path)
    steps = open_layout(tmp_path, first="steps")
    for place in (0, -1):
        one, other = channels.read(channels.samples[place]), steps.read(steps.samples[place])
        assert one.keys() == other.keys()
        for modality, values in one.items():
            assert other[modality].shape[0] > values.shape[0]
            assert torch.equal(other[modality], values.T)
            assert other[modality].is_contiguous()


@pytest.mark.parametrize("name", ["food-101", "food-101-json", "twitter-15", "sarcasm"])
def test_texts_of_a_converted_set_are_read_by_the_text_encoder(name, tmp_path):
    layout = opened(name, tmp_path / "set", size=16)
    convert(layout, tmp_path / "x.npz")
    given = {"epochs": 1, "batch_size": 2, "width": 8, "threads": 1, "device": "cpu"}
    result = train(Config(dataset=str(tmp_path / "x.npz"), **given), tmp_path / "run")
    encoder = result.network.encoders["text"]
    assert isinstance(encoder, TextEncoder)
    data = agm.data.load(tmp_path / "x.npz")
    ids = torch.cat([split.inputs["text"] for split in data.splits.values()])
    assert encoder.embedding.num_embeddings == int(ids.max()) + 1
    longer = torch.cat([ids[:1], torch.zeros_like(ids[:1])], dim=1)  # padding influences nothing
    torch.testing.assert_close(encoder(longer), encoder(ids[:1]))


def test_every_layout_has_a_fixture():
    others = {"mustard", "hugging-face", "webdataset"}  # tested elsewhere
    assert set(LAYOUTS) - others == {*SETS, *MORE}


def test_mustard_is_read_as_ur_funny_is(tmp_path):
    trees.ur_funny(tmp_path)
    (tmp_path / "humor.pkl").rename(tmp_path / "sarcasm.pkl")
    layout = open_layout(tmp_path)
    assert layout.name == "mustard"
    assert {split: len(samples) for split, samples in layout.arrange().items()} == {
        "train": 11,
        "validation": 6,
        "test": 6,
    }


def test_titles_without_a_header(tmp_path):
    pytest.importorskip("PIL")
    layout = open_layout(trees_more.food_101(tmp_path, header=False))
    assert len(layout.samples) == 11
    assert layout.samples[0].extra == "Best waffles, ever"


def test_words_become_bytes(tmp_path):
    layout = opened("twitter-15", tmp_path)
    text = layout.read(layout.samples[0])["text"]
    written = b'Ann is "out'
    assert text.tolist() == [1 + byte for byte in written] + [0] * (40 - len(written))
    assert layout.read(layout.samples[1])["text"].tolist()[:11] == [*[1 + byte for byte in b"I like Bob"], 0]
    assert [sample.label for sample in layout.samples[:3]] == [0, 2, 1]
    assert clean_title("RT look at #this, RT http://t.co/x more") == "look at this, RT"
    assert encode_text("é!", 2).tolist() == [196, 170]  # cut


def test_a_tokenizer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "best", "waffle"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]").save_pretrained(tmp_path / "words")
    layout = opened("food-101-json", tmp_path / "food", tokenizer=str(tmp_path / "words"), length=4)
    assert layout.read(layout.samples[0])["text"].tolist() == [2, 3, 0, 0]
    with pytest.raises(ValueError, match="Expected option `tokenizer` to be bytes or the folder of a tokenizer"):
        encode_text("x", 4, str(tmp_path / "nowhere"))


def test_cggm_has_images_between_0_and_1(tmp_path):
    layout = opened("food-101-json", tmp_path)
    image = layout.read(layout.samples[0])["image"]
    assert 0 <= image.min() < image.max() <= 1


def test_sarcasm_takes_the_last_label_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = opened("sarcasm", tmp_path)
    assert [sample.label for sample in layout.listed()["test"]] == [0, 1, 0]
    assert layout.samples[1].extra == "text '1' <user>"
    path = tmp_path / "train.txt"
    path.write_text(path.read_text() + "[__import__('os').system('touch ran'), 'x', 1]\n")
    with pytest.raises(ValueError, match=r"Expected every sample of .*train\.txt .* got 'line 5': no list of an ID"):
        open_layout(tmp_path)
    assert len(open_layout(tmp_path, skip_bad=True).skipped) == 2
    assert not Path("ran").exists()


def test_iemocap_is_standardised_by_its_fold(tmp_path):
    layout = opened("iemocap", tmp_path)
    import h5py

    sample = layout.samples[2]
    with h5py.File(tmp_path / "A/comparE.h5") as file:
        stored = file[sample.name][...]
    made = layout.read(sample)["audio"]
    np.testing.assert_allclose(made[:, 0], (stored[:350, 0] - 3) / 2, rtol=1e-6)
    np.testing.assert_allclose(made[:, 5], stored[:350, 5] - 3, rtol=1e-6)  # a deviation of 0
    assert not layout.read(sample)["vision"][28:].any()
    with pytest.raises(ValueError, match="Expected option `fold` to be one in"):
        open_layout(tmp_path, fold=2)


def test_pamap2_cuts_within_activities_and_carries_lost_values(tmp_path):
    layout = opened("pamap2", tmp_path)
    assert [sample.label for sample in layout.samples[:2]] == [0, 11]  # 180 kept steps hold one window of 171
    assert len(layout.class_names) == 12
    stored = read_numbers(tmp_path / "PAMAP2_Dataset/Protocol/subject101.dat", 54)[::3]
    made = layout.read(layout.samples[0])["acceleration"].numpy()
    assert np.isnan(stored[34, 4])  # step 102
    np.testing.assert_array_equal(made[0, 34], stored[33, 4])
    np.testing.assert_array_equal(made[3:, :30].T, stored[:30, [21, 22, 23, 38, 39, 40]])
    assert "4 steps with missing values take the last ones that were there" in layout.notes


def test_wisdm_leaves_broken_lines_out(tmp_path):
    layout = opened("wisdm", tmp_path)
    assert "2 broken lines are left out" in layout.notes
    made = layout.read(layout.samples[0])
    np.testing.assert_allclose(made["x"][0, :10], np.arange(10) / 10, rtol=1e-6)  # both of line 6
    assert {sample.group for sample in layout.samples} == {"33", "7", "12"}


def test_opportunity_takes_its_units_in_order(tmp_path):
    layout = opened("opportunity", tmp_path)
    assert layout.class_names[layout.samples[0].label] == "open door 1"
    stored = read_numbers(tmp_path / "dataset/S1-ADL1.dat", 250)
    made = layout.read(layout.samples[0])
    assert not made["acceleration"][:3].any()  # never there
    np.testing.assert_array_equal(made["acceleration"][3:6].T, stored[30:66, 50:53])
    np.testing.assert_array_equal(made["magnetometer"][-3:].T, stored[30:66, 95:98])


def test_unimib_and_usc_had(tmp_path):
    layout = opened("unimib-shar", tmp_path / "a")
    assert layout.read(layout.samples[1])["y"][0, 0] == 453 + 151
    layout = opened("usc-had", tmp_path / "b")
    assert [layout.class_names[sample.label] for sample in layout.samples[:4]] == [
        *["elevator down"] * 3,
        "walking forward",
    ]


def test_matlab_files_that_are_none(tmp_path):
    pytest.importorskip("scipy")
    trees_more.unimib(tmp_path)
    (tmp_path / "data/acc_labels.mat").write_bytes(b"MATLAB 5.0" * 20)
    with pytest.raises(ValueError, match=r"Expected .*acc_labels\.mat to be a MATLAB file with 'acc_labels'"):
        open_layout(tmp_path)


def test_numbers_that_are_none(tmp_path):
    (tmp_path / "x.txt").write_text("1 2 3\n4 five 6\n")
    with pytest.raises(ValueError, match=r"Expected .*x\.txt to hold 3 numbers a line, but got"):
        read_numbers(tmp_path / "x.txt", 3)
    (tmp_path / "x.txt").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"Expected .*x\.txt to hold 4 numbers a line, but got 3"):
        read_numbers(tmp_path / "x.txt", 4)


def test_reading_needs_no_decoder_until_something_is_decoded(tmp_path, monkeypatch):
    for package in ("PIL", "soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, package, None)
    trees.av_mnist(tmp_path)
    layout = open_layout(tmp_path)
    assert layout.read(layout.samples[0])["image"].shape == (1, 28, 28)
