"""The readers against published loaders: numbers that those gave for the same trees (tests/golden/loaders)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agm.data.layouts import open_layout
from agm.data.layouts.ave import event_shares

from . import trees

GOLDEN = np.load(Path(__file__).parents[2] / "golden/loaders/originals.npz")


def test_crema_d_as_agm_loads_it(tmp_path):
    for package in ("soundfile", "soxr", "PIL"):
        pytest.importorskip(package)
    trees.crema_d(tmp_path, samples=20_000, lossless=True)
    (tmp_path / "AudioWAV").rename(tmp_path / "Audio")
    layout = open_layout(tmp_path)
    made = layout.arrange("authors")
    for split in ("train", "test", "dep"):
        assert [sample.name for sample in made[split]] == GOLDEN[f"cremad_{split}_items"].tolist()
        assert [sample.label for sample in made[split]] == GOLDEN[f"cremad_{split}_labels"].tolist()
    for split in ("train", "test"):
        for place in range(4):
            generator = torch.Generator().manual_seed(place)
            values = layout.read(made[split][place], training=split == "train", generator=generator)
            audio, image = values["audio"][0, ::64, ::47], values["visual"][0, :, ::56, ::56]
            np.testing.assert_allclose(audio, GOLDEN[f"cremad_{split}_audio"][place], rtol=0, atol=1e-5)
            np.testing.assert_allclose(image, GOLDEN[f"cremad_{split}_image"][place], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("align", "key"), [("text", "aligned"), ("each", "unaligned")])
def test_ur_funny_as_multibench_loads_it(align, key, tmp_path):
    layout = open_layout(trees.ur_funny(tmp_path), align=align, normalise="channel")
    splits = layout.arrange()
    for split, short in (("train", "train"), ("validation", "valid"), ("test", "test")):
        assert [sample.label for sample in splits[split]] == GOLDEN[f"humor_{short}_labels"].tolist()
        for sample, lengths in zip(splits[split], GOLDEN[f"humor_{short}_{key}_lengths"].tolist(), strict=True):
            values = layout.read(sample)
            assert [int(value.any(dim=1).sum()) for value in values.values()] == lengths
    for name in layout.modalities:
        rows = torch.stack([layout.read(sample)[name] for sample in splits["train"]])[:, ::7, ::29].numpy()
        expected = GOLDEN[f"humor_{key}_{name}"]
        np.testing.assert_allclose(rows[:, : expected.shape[1]], expected, rtol=0, atol=1e-5)


def test_kinetics_sounds_as_mmpareto_loads_it(tmp_path):
    pytest.importorskip("PIL")
    layout = open_layout(trees.kinetics_sounds(tmp_path, overlap=True, lossless=True))
    for split, samples in layout.arrange("authors").items():
        assert [sample.name for sample in samples] == GOLDEN[f"ks_{split}_items"].tolist()
        assert [sample.label for sample in samples] == GOLDEN[f"ks_{split}_labels"].tolist()
        for sample, expected in zip(samples[:4], GOLDEN[f"ks_{split}_image"], strict=True):
            frames = layout.read(sample)["visual"].transpose(0, 1)[..., ::56, ::56]
            np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-6)


def test_ave_as_agm_loads_it(tmp_path):
    pytest.importorskip("h5py")
    layout = open_layout(trees.ave(tmp_path))
    order = GOLDEN["ave_order"]
    assert np.array_equal(layout.segments[order], GOLDEN["ave_segments"])
    np.testing.assert_allclose(event_shares(layout.segments[order]), GOLDEN["ave_shares"], rtol=1e-6)
    assert [sample.label for sample in layout.listed()["train"]] == GOLDEN["ave_segments"].reshape(-1).tolist()
