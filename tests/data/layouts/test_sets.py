"""Each layout, written as it lies on disks: recognised, and counts, labels, shapes, skipped files and splits."""

import pickle
import shutil
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from agm.data.layouts import (
    LayoutDataset,
    collate,
    open_layout,
    recognise,
)
from agm.data.layouts.mosei import sentiment_class
from agm.data.layouts.mosei_words import clean_word, sentiment_of

from . import trees


@dataclass
class Expected:
    """What a reader has to find in a fixture."""

    write: object
    shapes: dict[str, tuple[int, ...]]
    splits: dict[str, dict[str, int]]
    classes: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)


MEDIA = ("soundfile", "soxr", "PIL")
SETS = {
    "crema-d": Expected(
        trees.crema_d,
        {"audio": (1, 257, 188), "visual": (1, 3, 224, 224)},
        {
            "clean": {"train": 16, "test": 6},  # a tenth of 2 or 3 samples a class is none
            "actors": {"train": 7, "validation": 8, "test": 7},
            "authors": {"train": 14, "test": 5, "dep": 3},
        },
        trees.EMOTIONS,
        {"1003_IEO_HAP_XX": "no sound file", "1001_IEO_SAD_XX": "no frames"},
        MEDIA,
    ),
    "av-mnist": Expected(
        trees.av_mnist,
        {"audio": (1, 112, 112), "image": (1, 28, 28)},
        {"clean": {"train": 44, "validation": 4, "test": 20}, "authors": {"train": 43, "test": 18, "dep": 7}},
        tuple("0123456789"),
    ),
    "ur-funny": Expected(
        trees.ur_funny,
        {"vision": (50, 371), "audio": (50, 81), "text": (50, 300)},
        {"clean": {"train": 11, "validation": 6, "test": 6}, "authors": {"train": 11, "test": 6, "dep": 6}},
        ("not humorous", "humorous"),
        {"talk1": "no words"},
    ),
    "ave": Expected(
        trees.ave,
        {"audio": (128,), "visual": (49, 8)},
        {"clean": {"train": 60, "validation": 30, "test": 30}, "authors": {"train": 60, "validation": 30, "test": 30}},
        (),  # 29, looked at below
        needs=("h5py",),
    ),
    "ave-clips": Expected(
        trees.ave_clips,
        {"audio": (1, 257, 1004), "visual": (1, 3, 224, 224)},
        {"clean": {"train": 5, "validation": 2, "test": 4}, "authors": {"train": 5, "validation": 2, "test": 4}},
        ("Male speech, man speaking", "Truck", "Church bell"),
        {"vid04_-x": "no sound file", "vid02_-x": "a video that the list names twice"},
        ("PIL",),
    ),
    "mosei": Expected(
        trees.mult,
        {"vision": (50, 35), "audio": (50, 74), "text": (50, 300)},
        {"clean": {"train": 8, "validation": 4, "test": 4}, "authors": {"train": 8, "validation": 4, "test": 4}},
        ("negative", "not negative"),
    ),
    "mosi": Expected(
        lambda root: trees.mult(root, "mosi_data_noalign.pkl", (50, 37, 50)),
        {"vision": (50, 35), "audio": (37, 74), "text": (50, 300)},
        {"clean": {"train": 8, "validation": 4, "test": 4}, "authors": {"train": 8, "validation": 4, "test": 4}},
        ("-3", "-2", "-1", "0", "1", "2", "3"),
        options={"labels": "seven"},
    ),
    "mosei-words": Expected(
        trees.mosei_words,
        {"text": (60,), "audio": (60, 80)},
        {"clean": {"train": 5, "validation": 3, "test": 3}, "authors": {"train": 5, "validation": 3, "test": 3}},
        ("negative", "not negative"),
        {"trainvid1[2]": "no mels"},
    ),
    "kinetics-sounds": Expected(
        trees.kinetics_sounds,
        {"audio": (1, 1024, 128), "visual": (3, 3, 224, 224)},
        {"clean": {"train": 5, "test": 4}, "authors": {"train": 5, "test": 4}},
        tuple(f"class {number}" for number in range(31)),
        {"--4-0ihtnBU_000058_000068": "too few frames"},
        ("PIL",),
    ),
    "kinetics-sounds-34": Expected(
        trees.kinetics_sounds_34,
        {"audio": (1, 257, 1004), "visual": (1, 3, 224, 224)},
        {"clean": {"train": 5, "test": 6}, "authors": {"train": 5, "test": 6}},
        ("playing violin", "blowing nose", "laughing"),
        {"trainvid21": "no sound file"},
        ("PIL",),
    ),
    "vggsound": Expected(
        trees.vggsound,
        {"audio": (1, 129, 626), "visual": (3, 3, 224, 224)},
        {"clean": {"train": 4, "test": 3}, "authors": {"train": 4, "test": 3}},
        ("people burping, loudly", "playing harp", "zebra braying"),
        {"a-b_c_000000": "no sound file", "vid2_000060": "too few frames"},
        MEDIA,
    ),
    "ucf101": Expected(
        trees.ucf101,
        {"rgb": (3, 3, 224, 224), "flow": (3, 2, 224, 224)},
        {"clean": {"train": 5, "test": 3}, "authors": {"train": 5, "test": 3}},
        ("ApplyEyeMakeup", "Archery", "YoYo"),
        {"v_YoYo_g09_c01": "no frames in v"},
        ("PIL",),
    ),
}


def opened(name, root, **options):
    expected = SETS[name]
    for package in expected.needs:
        pytest.importorskip(package)
    expected.write(root)
    return open_layout(root, **{**expected.options, **options})


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_recognised_and_read(name, tmp_path):
    expected = SETS[name]
    layout = opened(name, tmp_path)
    assert (recognise(tmp_path).name, layout.name) == (name, name)
    assert recognise(tmp_path).missing == ()
    if expected.classes:
        assert layout.class_names == expected.classes
    assert {skipped.name: skipped.reason for skipped in layout.skipped} == expected.skipped
    for scheme, splits in expected.splits.items():
        made = layout.arrange(scheme)
        assert {split: len(samples) for split, samples in made.items()} == splits
        names = [sample.name for samples in made.values() for sample in samples]
        assert len(set(names)) == len(names) or name in ("ur-funny", "mosei", "mosi", "ave")
    assert list(layout.schemes) == list(expected.splits)
    for training in (False, True):
        values = layout.read(layout.samples[0], training=training, generator=torch.Generator().manual_seed(0))
        assert tuple(values) == layout.modalities
        assert {modality: tuple(value.shape) for modality, value in values.items()} == expected.shapes
        assert all(torch.isfinite(value).all() for value in values.values())
    # Into a process that shares nothing, after files have been opened.
    copy = pickle.loads(pickle.dumps(layout)).read(layout.samples[0])
    assert all(torch.equal(value, copy[modality]) for modality, value in layout.read(layout.samples[0]).items())


def test_crema_d_has_two_orders_of_labels(tmp_path):
    table = opened("crema-d", tmp_path)
    by_name = {sample.name: sample.label for sample in table.samples}
    assert by_name["1001_DFA_NEU_XX"] == 0
    assert by_name["1003_ITH_ANG_XX"] == 5
    assert Counter(by_name.values())[1] == 3  # of HAP, whose second clip has no sound
    mmpareto = open_layout(tmp_path, labels="sorted")
    assert mmpareto.class_names == ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    assert {sample.name: mmpareto.class_names[sample.label] for sample in mmpareto.samples} == {
        name: table.class_names[label] for name, label in by_name.items()
    }


def test_crema_d_actors_are_kept_apart_only_if_asked(tmp_path):
    layout = opened("crema-d", tmp_path)
    apart = [{sample.group for sample in samples} for samples in layout.arrange("actors").values()]
    assert sorted(len(groups) for groups in apart) == [1, 1, 1]
    assert set.union(*apart) == set(trees.ACTORS)
    assert "3 actors are in train and in test; --split actors keeps them apart" in layout.notes


def test_crema_d_without_lists_is_split_by_actor(tmp_path):
    trees.crema_d(tmp_path)
    shutil.rmtree(tmp_path / "CREMAD")
    layout = open_layout(tmp_path)
    assert {split: len(samples) for split, samples in layout.arrange().items()} == {
        "train": 7,
        "validation": 8,
        "test": 7,
    }


def test_crema_d_keeps_the_order_of_its_lists_for_the_authors(tmp_path):
    layout = opened("crema-d", tmp_path)
    made = layout.arrange("authors")
    listed = layout.listed()
    assert made["train"] == listed["train"][:14]  # int(0.9 * 16)
    assert made["test"] == listed["test"][:5]
    assert made["dep"] == listed["train"][14:] + listed["test"][5:]


def test_crema_d_with_a_validation_list(tmp_path):
    trees.crema_d(tmp_path)
    rows = (tmp_path / "CREMAD/train.csv").read_text("utf-8-sig").split("\n")
    (tmp_path / "CREMAD/my_train.csv").write_text("\n".join(rows[3:]))
    (tmp_path / "CREMAD/val.csv").write_text("\n".join(rows[:3]))
    assert {split: len(samples) for split, samples in open_layout(tmp_path).arrange().items()} == {
        "train": 13,
        "validation": 3,
        "test": 6,
    }


def test_crema_d_fills_banks_and_two_frames(tmp_path):
    layout = opened("crema-d", tmp_path, audio="fbank", frames=2, pick="middle")
    values = layout.read(layout.samples[0])
    assert values["audio"].shape == (1, 1024, 128)
    assert values["visual"].shape == (2, 3, 224, 224)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_av_mnist_is_between_0_and_1_whatever_it_is_stored_in(dtype, tmp_path):
    trees.av_mnist(tmp_path, dtype)
    layout = open_layout(tmp_path)
    stored = np.load(tmp_path / "image/train_data.npy")
    made = layout.read(layout.samples[5])["image"]
    assert made.dtype == torch.float32
    np.testing.assert_array_equal(made.reshape(-1), stored[5].astype(np.float32) / 255)
    assert [sample.label for sample in layout.samples[:5]] == [0, 3, 6, 9, 2]


def test_sequences_begin_with_the_first_word(tmp_path):
    layout = opened("ur-funny", tmp_path)
    stored = layout._arrays["train"]
    sample = next(sample for sample in layout.samples if sample.row == 2)  # begins at 2, its words at 4
    made = layout.read(sample)
    for name in layout.modalities:
        np.testing.assert_array_equal(made[name][:46], stored[name][2, 4:])
        assert not made[name][46:].any()
    each = open_layout(tmp_path, align="each").read(sample)
    np.testing.assert_array_equal(each["vision"][:48], stored["vision"][2, 2:])
    np.testing.assert_array_equal(each["text"][:46], stored["text"][2, 4:])
    whole = open_layout(tmp_path, align="none").read(sample)
    np.testing.assert_array_equal(whole["vision"], stored["vision"][2])


def test_minus_infinity_in_the_sound_is_0(tmp_path):
    layout = opened("ur-funny", tmp_path)
    sample = next(sample for sample in layout.samples if sample.row == 4)
    assert layout.read(sample)["audio"][20 - 2, 5] == 0  # its words begin at 2
    assert "1 values of -inf in audio are read as 0" in layout.notes


@pytest.mark.parametrize("how", ["global", "channel"])
def test_sequences_are_standardised(how, tmp_path):
    layout = opened("ur-funny", tmp_path, normalise=how)
    made = layout.read(layout.samples[0])["vision"][:48].double()
    np.testing.assert_allclose(made.mean(0), 0, atol=1e-6)
    deviations = made.std(0) if how == "channel" else made.std().reshape(1)
    np.testing.assert_allclose(deviations, 1, atol=2e-2 if how == "global" else 1e-5)


def test_rules_of_sentiments():
    values = (-3.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.5, 3.4)
    assert [sentiment_class(value, "binary") for value in values] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [sentiment_class(value, "positive") for value in values] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [sentiment_class(value, "nonzero") for value in values] == [0, 0, 0, -1, 1, 1, 1, 1]
    assert [sentiment_class(value, "seven") for value in values] == [0, 3, 3, 3, 3, 3, 5, 6]
    edges = (-2.1, -2.0, -1.0, -0.1, 0.0, 0.1, 1.0, 1.1, 2.0, 2.1)
    assert [sentiment_of(value, "seven") for value in edges] == [0, 1, 2, 2, 3, 4, 4, 5, 5, 6]
    assert [sentiment_of(value, "binary") for value in edges] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_zero_sentiments_can_be_left_out(tmp_path):
    layout = opened("mosei", tmp_path, labels="nonzero")
    assert {skipped.reason for skipped in layout.skipped} == {"a sentiment of 0"}
    assert len(layout.skipped) == 3  # one a split
    assert layout.samples[0].group == "video0"


def test_a_file_that_is_named_is_the_one_that_is_read(tmp_path):
    trees.mult(tmp_path)
    trees.mult(tmp_path, "mosei_senti_data_noalign.pkl", (500, 500, 50))
    assert open_layout(tmp_path).read(open_layout(tmp_path).samples[0])["audio"].shape == (50, 74)
    path = tmp_path / "mosei_senti_data_noalign.pkl"
    assert recognise(path).found["data"] == path
    layout = open_layout(path)
    assert layout.read(layout.samples[0])["audio"].shape == (500, 74)


def test_words_are_numbered_as_the_authors_number_them(tmp_path):
    layout = opened("mosei-words", tmp_path)
    assert clean_word('"Good/bad"') == "good bad"
    text = [layout.read(sample)["text"] for sample in layout.samples[:2]]
    # "well known" shares 1 with unknown words; things 2? UNK is counted, so things has 2, really 3.
    assert text[0][:4].tolist() == [1, 2, 3, 0]
    assert text[1][:6].tolist() == [4, 5, 6, 3, 0, 0]  # the comma is no word
    long = next(sample for sample in layout.samples if sample.name == "trainvid2[5]")
    np.testing.assert_array_equal(layout.read(long)["audio"], layout._mels["train"][long.name][:60])
    trees.write_pickle(tmp_path / "token_to_ix.pkl", {"UNK": 1, "really": 9})
    np.save(tmp_path / "train_glove.npy", np.arange(3000.0).reshape(10, 300))
    again = open_layout(tmp_path, text="glove")
    made = again.read(again.samples[0])["text"]
    assert made.shape == (60, 300)
    assert made[:4, 0].tolist() == [300, 300, 2700, 0]


def test_frames_of_ave_are_cut_to_the_event(tmp_path):
    layout = opened("ave-clips", tmp_path)
    assert len(layout.frames(layout.samples[0])) == 2
    (tmp_path / "Image-01-FPS-SE").rename(tmp_path / "Image-01-FPS")
    lines = (tmp_path / "testSet.txt").read_text().split("\n")
    (tmp_path / "testSet.txt").write_text("\n".join([lines[0].replace("&0&", "&1&"), *lines[1:]]))
    cut = open_layout(tmp_path)
    assert [path.name for path in cut.frames(cut.samples[0])] == ["00029.jpg"]
    (tmp_path / "testSet.txt").write_text("\n".join([lines[0].replace("&0&", "&9&"), *lines[1:]]))
    with pytest.raises(ValueError, match="seconds '9' to '6' in line 1"):
        open_layout(tmp_path)


def test_kinetics_sounds_takes_its_own_frames(tmp_path):
    layout = opened("kinetics-sounds", tmp_path)
    assert layout.choose(10, False, None) == [0, 3, 6]  # frames 1, 4 and 7
    assert layout.choose(6, False, None) == [0, 0, 0]
    generator = torch.Generator().manual_seed(0)
    drawn = [layout.choose(10, True, generator) for _ in range(100)]
    assert [{places[turn] for places in drawn} for turn in range(3)] == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]
    assert [sample.label for sample in layout.samples] == [0, 3, 6, 9, 15, 18, 21, 24, 27]


def test_kinetics_sounds_with_spaces(tmp_path):
    pytest.importorskip("PIL")
    layout = open_layout(trees.kinetics_sounds(tmp_path, overlap=True))
    assert [sample.label for sample in layout.samples] == [0, 3, 6, 9, 15, 18, 21, 24, 27]


def test_ucf101_is_mirrored_together(tmp_path):
    layout = opened("ucf101", tmp_path)
    by_itself = open_layout(tmp_path, together=False)
    frames = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 1, 4)
    mirrored = {
        tuple((by_itself._mirror(frames, frames, torch.Generator().manual_seed(seed))[1] != frames).any(-1).flatten())
        for seed in range(40)
    }
    assert len(mirrored) > 20  # of 64
    plain = layout.read(layout.samples[0], raw=True)
    seen = set()
    for seed in range(6):
        made = layout.read(layout.samples[0], training=True, generator=torch.Generator().manual_seed(seed))
        assert 0 <= made["flow"].min() <= made["flow"].max() <= 1
        rgb, flow = layout._mirror(plain["rgb"], plain["flow"], torch.Generator().manual_seed(seed))
        assert made["rgb"].shape == rgb.shape
        mirrored = not torch.equal(rgb, plain["rgb"])
        seen.add(mirrored)
        assert torch.equal(flow[:, 1], plain["flow"][:, 1].flip(-1) if mirrored else plain["flow"][:, 1])
        assert torch.equal(flow[:, 0], 255 - plain["flow"][:, 0].flip(-1) if mirrored else plain["flow"][:, 0])
    assert seen == {False, True}


def test_a_loader_gives_the_same_whatever_its_workers(tmp_path):
    layout = opened("kinetics-sounds", tmp_path)
    data = LayoutDataset(layout, layout.arrange()["train"], training=True, seed=3)
    assert data.targets.tolist() == [0, 3, 6, 9, 15]
    batches = [
        list(torch.utils.data.DataLoader(data, 2, num_workers=workers, collate_fn=collate)) for workers in (0, 2)
    ]
    for (inputs, target, places), (same, labels, numbers) in zip(*batches, strict=True):
        assert torch.equal(inputs["visual"], same["visual"])
        assert target.tolist() == labels.tolist()
        assert places.tolist() == numbers.tolist()
    before = data[0][0]["visual"]
    assert torch.equal(before, data[0][0]["visual"])
    data.set_epoch(1)
    assert not torch.equal(before, data[0][0]["visual"])


def test_images_as_bytes_are_finished_later(tmp_path):
    layout = opened("kinetics-sounds", tmp_path)
    samples = layout.arrange()["test"]
    raw, plain = LayoutDataset(layout, samples, raw=True), LayoutDataset(layout, samples)
    batch = collate([raw[0], raw[1]])[0]
    assert batch["visual"].dtype == torch.uint8
    finished = raw.finish(batch)
    assert torch.equal(finished["visual"], torch.stack([plain[0][0]["visual"], plain[1][0]["visual"]]))
    assert raw.finish(batch, torch.bfloat16)["visual"].dtype == torch.bfloat16
