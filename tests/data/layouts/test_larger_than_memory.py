"""Hugging Face's tables and WebDataset's shards by the interface of every layout, as streams, and on a device."""

import io
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import agm.data
from agm.data.layouts import LayoutDataset, collate, feed, open_layout, recognise, stream_rows, stream_shards
from agm.data.layouts.hugging_face import RowDecoder
from agm.training.__main__ import main

from . import trees


def jpeg(colour: int = 0) -> bytes:
    content = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(trees.pixels(colour=colour)).save(content, "JPEG")
    return content.getvalue()


def spectrogram(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def sound(tmp_path_factory):
    pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    return trees.write_sound(tmp_path_factory.mktemp("sound") / "x.wav").read_bytes()


@pytest.fixture
def tables(tmp_path, sound):
    """12 and 5 rows with an image, a sound, an array, a text, a name that is no modality, and class labels."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "spec": datasets.Array2D((3, 4), "float32"),
            "caption": datasets.Value("string"),
            "file": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["dog", "cat", "bird"]),
        }
    )
    splits = {}
    for split, rows in (("train", 12), ("test", 5)):
        columns = {
            "image": [{"bytes": jpeg(number), "path": None} for number in range(rows)],
            "audio": [{"bytes": sound, "path": None}] * rows,
            "spec": [spectrogram(number) for number in range(rows)],
            "caption": [f"caption {number}" for number in range(rows)],
            "file": [f"/somewhere/{number}" for number in range(rows)],
            "label": [number % 3 for number in range(rows)],
        }
        made = datasets.Dataset.from_dict(columns, features=features)
        splits[split] = made.cast_column("audio", datasets.Audio())
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "tables")
    return tmp_path / "tables"


def test_tables_are_read_by_the_same_interface(tables):
    assert recognise(tables).name == "hugging-face"
    layout = open_layout(tables)
    assert layout.modalities == ("image", "audio", "spec", "caption")
    assert layout.class_names == ("dog", "cat", "bird")
    assert {split: len(samples) for split, samples in layout.listed().items()} == {"train": 12, "test": 5}
    values = layout.read(layout.listed()["test"][3])
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "image": (3, 224, 224),
        "audio": (1, 257, 188),
        "spec": (3, 4),
        "caption": (40,),
    }
    np.testing.assert_array_equal(values["spec"], spectrogram(3))
    assert values["caption"][:9].tolist() == [1 + byte for byte in b"caption 3"]
    assert values["image"].min() < 0  # ImageNet's mean has been taken
    data = LayoutDataset(layout, layout.listed()["train"], raw=True)
    for workers in (0, 2):
        batches = list(DataLoader(data, 5, num_workers=workers, collate_fn=collate))
        assert [target.tolist() for _, target, _ in batches] == [[0, 1, 2, 0, 1], [2, 0, 1, 2, 0], [1, 2]]
        assert batches[0][0]["image"].dtype == torch.uint8


def test_columns_and_labels_can_be_chosen(tables):
    layout = open_layout(tables, columns="spec,image", label="caption")
    assert layout.modalities == ("spec", "image")
    assert layout.class_names[1] == "caption 1"
    for options, message in (
        ({"columns": "depth"}, "Expected option `columns` to name images, sounds, arrays or texts .* got 'depth'"),
        ({"label": "truth"}, "Expected option `label` to be one of image, audio"),
    ):
        with pytest.raises(ValueError, match=message):
            open_layout(tables, **options)


def test_a_table_without_splits(tables, tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"numbers": [[float(n), 1.0] for n in range(30)], "target": [str(n % 2) for n in range(30)]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "one")
    layout = open_layout(tmp_path / "one")
    made = layout.arrange()
    assert {split: len(samples) for split, samples in made.items()} == {"train": 24, "validation": 2, "test": 4}
    assert layout.read(layout.samples[7])["numbers"].tolist() == [7.0, 1.0]
    assert layout.class_names == ("0", "1")
    columns["target"][:3] = [None, "b", "a"]
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="readable, but got 'train 0': label ''"):
        open_layout(tmp_path / "two")
    layout = open_layout(tmp_path / "two", skip_bad=True)
    assert layout.class_names == ("0", "1", "a", "b")
    assert (len(layout.samples), len(layout.skipped)) == (29, 1)


def test_paths_in_tables_are_not_followed(tmp_path):
    datasets = pytest.importorskip("datasets")
    trees.write_image(tmp_path / "secret.jpg")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.jpg")}], "label": [0]}
    row = datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image(decode=False))[0]
    with pytest.raises(ValueError, match=r"Expected `image` in row 0 to hold the file's content, but got none"):
        RowDecoder(features).decode(row, {}, "row 0")


def test_a_folder_of_tables_that_is_damaged(tables):
    next((tables / "train").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(ValueError, match=r"Expected .*tables to be a folder of datasets\.save_to_disk, but got"):
        open_layout(tables)


def test_streams_of_tables(tables):
    datasets = pytest.importorskip("datasets")
    table = datasets.load_from_disk(str(tables))["train"].to_iterable_dataset(num_shards=4)
    data = stream_rows(table, columns=["image", "spec"], training=True)
    for workers in (0, 2):
        loader = feed(data, 4, workers=workers, prefetch=1)
        labels, found = [], []
        for inputs, target, _ in loader:
            assert inputs["image"].dtype == torch.float32
            labels += target.tolist()
            found += inputs["spec"].flatten(1)[:, 0].tolist()
        assert Counter(labels) == {0: 4, 1: 4, 2: 4}
        assert sorted(found) == sorted(float(spectrogram(number)[0, 0]) for number in range(12))
    with pytest.raises(ValueError, match=r"Expected options \(size, crop, audio"):
        stream_rows(table, colour=1)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Three shards of train with four samples each, one of test; labels by name."""
    root = tmp_path / "shards"
    root.mkdir()
    (root / "classes.txt").write_text("guide dog\ncat\n")
    number = 0
    for shard, samples in (("train-000000", 4), ("train-000001", 4), ("train-000002", 4), ("test-000000", 3)):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for _ in range(samples):
                key = f"set/clip{number:03d}"
                add(archive, f"{key}.left.jpg", jpeg(number))
                add(archive, f"{key}.spec.npy", npy(spectrogram(number)))
                add(archive, f"{key}.cls", ("guide dog", "cat")[number % 2].encode())
                number += 1
    return root


def test_shards_are_read_by_the_same_interface(shards):
    assert recognise(shards).name == "webdataset"
    layout = open_layout(shards)
    assert layout.modalities == ("left", "spec")
    assert layout.class_names == ("guide dog", "cat")
    assert {split: len(samples) for split, samples in layout.listed().items()} == {"train": 12, "test": 3}
    sample = layout.listed()["test"][1]
    assert (sample.name, sample.label) == ("set/clip013", 1)
    values = layout.read(sample)
    np.testing.assert_array_equal(values["spec"], spectrogram(13))
    assert values["left"].shape == (3, 224, 224)
    assert values["left"].dtype == torch.float32
    other = LayoutDataset(layout, layout.listed()["train"], training=True)
    assert not torch.equal(other[0][0]["left"], layout.read(layout.samples[0])["left"])


def test_labels_in_json_and_without_names(tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for number in range(20):
            add(archive, f"{number}.npy", npy(spectrogram(number)))
            add(archive, f"{number}.json", f'{{"kind": {number % 4}}}'.encode())
    layout = open_layout(tmp_path, label="kind")
    assert layout.class_names == ("0", "1", "2", "3")
    assert [sample.label for sample in layout.samples[:5]] == [0, 1, 2, 3, 0]
    assert {split: len(samples) for split, samples in layout.arrange().items()}.keys() == {"train", "test"}
    with pytest.raises(ValueError, match=r"readable, but got '0': no label"):
        open_layout(tmp_path)


def test_shards_that_are_damaged_or_lead_elsewhere(shards):
    path = shards / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"Expected .*train-000001\.tar to be a tar file that is whole"):
        open_layout(shards)
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("set/evil.left.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "../../x.left.jpg", jpeg())
        add(archive, "../../x.spec.npy", npy(np.array([{}], dtype=object)))
        add(archive, "../../x.cls", b"cat")
    layout = open_layout(shards)
    sample = next(sample for sample in layout.samples if sample.name == "../../x")  # nothing is ever unpacked
    with pytest.raises(ValueError, match=r"Expected spec\.npy of \.\./\.\./x in .* pickled objects"):
        layout.read(sample)


def test_streams_of_shards(shards):
    pytest.importorskip("webdataset")
    orders = {}
    for epoch in (0, 0, 1):
        data = stream_shards(shards, training=True, seed=5)
        loader = feed(data, 4, workers=0)
        loader.set_epoch(epoch)
        places = [inputs["spec"].flatten(1)[:, 0] for inputs, _, _ in loader]
        order = torch.cat(places).tolist()
        assert sorted(order) == sorted(float(spectrogram(number)[0, 0]) for number in range(12))
        assert orders.setdefault(epoch, order) == order
    assert orders[0] != orders[1]
    loader = feed(stream_shards(shards, "test"), 2, workers=2)
    labels = [label for _, target, _ in loader for label in target.tolist()]
    assert labels == [0, 1, 0]
    with pytest.raises(ValueError, match=r"Expected .* to hold shards of validation"):
        stream_shards(shards, "validation")


def test_streams_go_into_processes_that_share_nothing(shards):
    pytest.importorskip("webdataset")
    layout = open_layout(shards)
    data = LayoutDataset(layout, layout.listed()["test"])
    loader = DataLoader(data, 2, num_workers=1, collate_fn=collate, multiprocessing_context="spawn")
    assert [target.tolist() for _, target, _ in loader] == [[0, 1], [0]]
    loader = DataLoader(
        stream_shards(shards, "test"), 2, num_workers=1, collate_fn=collate, multiprocessing_context="spawn"
    )
    assert [target.tolist() for _, target, _ in loader] == [[0, 1], [0]]


def test_a_feed_shuffles_by_seed_and_epoch(shards):
    layout = open_layout(shards)
    data = LayoutDataset(layout, layout.listed()["train"], raw=True)
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        loader = feed(data, 5, shuffle=True, workers=0, seed=seed, dtype=torch.bfloat16)
        loader.set_epoch(epoch)
        assert len(loader) == 3
        order = []
        for inputs, target, places in loader:
            assert inputs["left"].dtype == inputs["spec"].dtype == torch.bfloat16
            assert target.tolist() == data.targets[places].tolist()
            order += places.tolist()
        assert sorted(order) == list(range(12))
        orders.append(order)
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


def test_a_feed_leaves_bad_samples_out(shards):
    layout = open_layout(shards)
    samples = layout.listed()["train"]
    path = samples[2].files["shard"]
    offset, size = samples[2].extra["left.jpg"]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected left\.jpg of set/clip002 in .*train-000000\.tar to be an image"):
        list(feed(LayoutDataset(layout, samples), 4, workers=0))
    data = LayoutDataset(layout, samples, skip_bad=True)
    for workers in (0, 1):
        assert [len(target) for _, target, _ in feed(data, 4, workers=workers)] == [3, 4, 4]
        assert data.bad == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be 1 or more, but got 0"),
        ({"batch_size": 2, "workers": -1}, "`workers` to be 0 or more, but got -1"),
        ({"batch_size": 2, "prefetch": 0}, "`prefetch` to be 1 or more, but got 0"),
    ],
)
def test_bad_arguments_of_a_feed(arguments, message, shards):
    layout = open_layout(shards)
    with pytest.raises(ValueError, match=message):
        feed(LayoutDataset(layout, layout.samples), **arguments)


def test_training_on_a_folder_of_shards_or_tables(shards, tables, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("shards", "tables"):
        data = agm.data.load(folder)
        assert len(data.test) == {"shards": 3, "tables": 5}[folder]
    datasets = pytest.importorskip("datasets")
    chosen = datasets.load_from_disk("tables").select_columns(["image", "spec", "label"])
    chosen.save_to_disk("two")
    assert (
        main(
            [
                "train",
                "--dataset",
                "two",
                "--epochs",
                "1",
                "--batch-size",
                "6",
                "--width",
                "4",
                "--threads",
                "1",
                "--out",
                "run",
            ]
        )
        == 0
    )
    assert main(["data", "inspect", "shards"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "a WebDataset (layout webdataset)" in output
    assert "0 guide dog (8); 1 cat (7)" in output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_feed_brings_bytes_and_makes_floats_on_the_gpu(shards):
    layout = open_layout(shards)
    data = LayoutDataset(layout, layout.listed()["train"], raw=True)
    plain = LayoutDataset(layout, layout.listed()["train"])
    loader = feed(data, 4, device="cuda", dtype=torch.bfloat16, workers=2)
    for inputs, target, places in loader:
        assert inputs["left"].device.type == target.device.type == "cuda"
        expected = torch.stack([plain[place][0]["left"] for place in places.tolist()]).to("cuda", torch.bfloat16)
        torch.testing.assert_close(inputs["left"], expected, rtol=0, atol=0.02)
