"""Samples whose parts come as content rather than as files of their own: rows of tables, entries of archives."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agm.data._reading import HEADER, Refused, check_header
from agm.data.layouts.choices import Choice, number, one_of, sound_options
from agm.data.layouts.pictures import read_image
from agm.data.layouts.sound import sound_features
from agm.data.layouts.text import encode_text, text_options

__all__ = ["decode_array", "decode_field", "field_options"]


def field_options() -> dict[str, Choice]:
    return {
        "size": number(224, 8, 1024, "sides of an image in pixels"),
        "crop": one_of("random", "none", help="of images in training: a random part, mirrored or not, or the whole"),
        **sound_options("stft"),
        **text_options(40),
    }


def decode_field(
    kind: str,
    content: Any,
    options: Mapping[str, Any],
    name: str,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One modality of a sample.

    Args:
        kind: "image" or "audio", the content of a file; "text", a text; "array", numbers.
        content: bytes, a text, or an array.
        options: of `field_options`.
        name: what errors call it.
        training: with random crops and mirrors of images.
        generator: of what is random.

    Returns:
        "image" (3, size, size) uint8, "audio" (1, H, W) float32, "text" (length,) int64, "array" float32 or int64.

    Raises:
        ValueError: it does not decode, or holds NaN or infinity.
    """
    if kind == "image":
        crops = training and options["crop"] == "random"
        return read_image(content, options["size"], training=crops, generator=generator, name=name)
    if kind == "audio":
        made = sound_features(content, options["audio"], options["padding"], options["resampler"], name)
        return torch.from_numpy(made)
    if kind == "text":
        return encode_text(str(content), options["length"], options["tokenizer"])
    values = np.asarray(content)
    if values.dtype.kind not in "fiub":
        raise ValueError(
            f"Expected {name} to hold numbers in one shape, but got {values.dtype}. Leave this column out."
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(
            f"Expected {name} to be finite, but got NaN or infinity. Repair it, or use agm data convert --skip-bad."
        )
    whole = values.dtype.kind in "iu" and values.dtype != np.uint8
    return torch.from_numpy(np.array(values, dtype=np.int64 if whole else np.float32))


def decode_array(content: bytes, name: str) -> np.ndarray:
    """The array of an `.npy` file's content.

    Raises:
        ValueError: it is none, holds pickled objects, or is damaged.
    """
    stream = io.BytesIO(content)
    try:
        check_header(stream, len(content))
    except Refused as error:
        raise ValueError(f"Expected {name} to be an array of numpy (.npy), but got: {error}.") from None
    stream.seek(0)
    made: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=HEADER)
    return made
