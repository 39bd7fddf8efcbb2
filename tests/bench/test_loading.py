"""The suite data measures loaders that give the same samples."""

import pytest
import torch

from agm.data.layouts import LayoutDataset, open_layout
from bench import loading
from bench.cases import Options


@pytest.fixture(autouse=True)
def decoders():
    for package in loading.DECODERS:
        pytest.importorskip(package)


def test_every_variant_decodes_every_clip():
    case = list(loading.cases(Options(device=torch.device("cpu"), quick=True)))[1]
    built = case.build()
    assert {"torch", "layout", "feed", "shards"} <= set(built.variants)
    for call in built.variants.values():
        _, samples = call()
        assert samples == case.facts["examples"] == 24


def test_the_published_loader_gives_what_the_layout_gives(tmp_path):
    loading._write_clips(tmp_path / "clips", 6)
    published = loading.PublishedClips(tmp_path / "clips")
    layout = open_layout(tmp_path / "clips")
    data = LayoutDataset(layout, layout.listed()["train"], training=True)
    for place in range(6):
        audio, image, label = published[place]
        values, target, _ = data[place]
        assert label == target
        torch.testing.assert_close(audio.exp(), values["audio"][0].exp(), rtol=1e-4, atol=1e-4)
        assert image.shape == values["visual"].shape
