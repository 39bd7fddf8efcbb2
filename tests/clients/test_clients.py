"""Networks that people use, each by one line of `agm.AGM`: right in every gradient, and on the fast path."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import agm

from . import forms, published
from .client import BATCH, measured

transformers = pytest.importorskip("transformers")

from . import huggingface, pairs  # noqa: E402

CLIENTS = {**published.CLIENTS, **forms.CLIENTS, **huggingface.CLIENTS, **pairs.CLIENTS}
# `python tests/clients` measures both modes of each; a test takes them in turns.
WORKING = [name for name, client in CLIENTS.items() if client.cheap and client.refused is None]
MODES = [(name, ("exact", "shared")[number % 2]) for number, name in enumerate(WORKING)]


@pytest.mark.parametrize(("name", "masked"), MODES)
def test_is_right_and_fast(name: str, masked: str) -> None:
    found = measured(CLIENTS[name], masked)
    assert found.ok, found.report
    assert found.finite
    # B + 1 in shared mode and without norms or dropouts, else 2 B + 1; three passes were 3 B. Where an absent input
    # differs from sample to sample, as a text does whose mask or length stays, it is B rows.
    most = 2 + 1 / BATCH if masked == "exact" else 1 + 1 / BATCH
    most_of_text = 3 if masked == "exact" else 2.5
    texts = ("text", "input_ids")
    assert {one: rows for one, rows in found.rows.items() if rows > (most_of_text if one in texts else most)} == {}


def test_the_page_has_all_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row not in ("network", "---")] == list(CLIENTS)


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.refused is not None])
def test_is_refused_with_advice(name: str) -> None:
    client = CLIENTS[name]
    with pytest.raises(ValueError, match=re.escape(client.refused or "")):
        client.wrapped("shared")(**client.inputs(), target=client.target())


def test_a_decoder_with_its_cache_is_told_to_leave_it() -> None:
    client = huggingface.CLIENTS["Llama as an encoder"]
    model = agm.AGM(huggingface.Decoding(), client.modalities, encoders=client.encoders)
    with pytest.raises(ValueError, match="use_cache=False"):
        model(**client.inputs(), target=client.target())


def test_similarities_of_samples_are_logits_of_each_subset_alone() -> None:
    class Contrasting(huggingface.Clip):
        def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            given = {"input_ids": input_ids, "pixel_values": pixel_values, "attention_mask": attention_mask}
            return self.clip(**given).logits_per_image

    inputs, target = huggingface.CLIENTS["CLIP"].inputs(), torch.arange(BATCH)
    paths: dict[str, Any] = {"encoders": {"text": "clip.text_model", "image": "clip.vision_model"}}
    for options in ({}, paths, {**paths, "masked": "shared"}):
        assert agm.verify(agm.AGM(Contrasting(), huggingface.GROUPED, **options), inputs, target).ok


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("Whisper + BERT", {"input_features": 1 + 1 / BATCH, "input_ids": 2 + 1 / BATCH}),
        ("packed sequences", {"text": 2 + 1 / BATCH, "image": 1 + 1 / BATCH}),
        ("CLIP by its methods", {"text": 2 + 1 / BATCH, "image": 1 + 1 / BATCH}),
    ],
)
def test_rows_are_what_an_encoder_is_given(name: str, rows: dict[str, float]) -> None:
    """Whether or not the step that is counted drops a layer, and however many tokens a packed row has."""
    for _ in range(3):
        assert list(measured(CLIENTS[name], "shared").rows.values()) == list(rows.values())
