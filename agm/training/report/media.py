"""A sample's modalities as a person looks at them: text, a picture, a curve or numbers."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Medium", "medium", "png_uri"]

TEXT = 400  # characters that are shown
TOKENS = 48
LARGEST = 256  # pixels of a side
FRAMES = 4
CURVES = 6  # features whose courses are told apart
POINTS = 400
FEW = 8  # numbers that are written out


@dataclass(frozen=True)
class Medium:
    """One modality of one sample.

    Args:
        modality: its name.
        kind: what there is to show; "absent" where the sample lacks it.
        text: of text, token ids and few numbers.
        source: data URI of a picture.
        curves: points of polylines in a box of 100 x 40.
        shape: of the sample.
    """

    modality: str
    kind: Literal["absent", "text", "picture", "curves"]
    text: str = ""
    source: str = ""
    curves: tuple[str, ...] = ()
    shape: str = ""


def medium(modality: str, value: Tensor, present: bool = True) -> Medium:
    """Show a sample.

    >>> import torch
    >>> medium("title", torch.tensor([72, 105, 0, 0], dtype=torch.uint8)).text
    'Hi'

    Args:
        modality: its name.
        value: the sample: uint8 (T,) text in UTF-8, int64 (T,) token ids, or float32: (D,) features, (T, D) a sequence,
            (C, H, W) a picture or spectrogram, (T, C, H, W) frames. It is scaled by its own extremes.
        present: whether the sample has it.
    """
    if not present:
        return Medium(modality, "absent")
    shape = " x ".join(map(str, value.shape))
    if not value.is_floating_point():
        return Medium(modality, "text", _text(value), shape=shape)
    if value.dim() == 4:
        places = np.linspace(0, len(value) - 1, min(len(value), FRAMES)).round().astype(int)
        strip = np.concatenate([_pixels(value[place]) for place in places.tolist()], axis=1)
        return Medium(modality, "picture", source=png_uri(strip), shape=shape)
    if value.dim() == 3:
        return Medium(modality, "picture", source=png_uri(_pixels(value)), shape=shape)
    if value.dim() == 2 and value.shape[1] > CURVES:
        return Medium(modality, "picture", source=png_uri(_pixels(value.T.unsqueeze(0))), shape=shape)
    if value.dim() == 2:
        return Medium(modality, "curves", curves=_curves(value.T), shape=shape)
    if value.dim() == 1 and len(value) > FEW:
        return Medium(modality, "curves", curves=_curves(value.unsqueeze(0)), shape=shape)
    return Medium(
        modality, "text", ", ".join(f"{number:.3g}" for number in value.flatten().tolist()[:FEW]), shape=shape
    )


def png_uri(pixels: Any) -> str:
    """A data URI of a picture, (H, W, 3) or (H, W, 4) with values from 0 to 1."""
    from matplotlib import image

    content = io.BytesIO()
    image.imsave(content, np.ascontiguousarray(pixels), format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _text(value: Tensor) -> str:
    if value.element_size() == 1:
        text = bytes(value.tolist()).rstrip(b"\0").decode("utf-8", "replace")
        text = " ".join(text.split())
        return text if len(text) <= TEXT else text[:TEXT] + " …"
    tokens = [token for token in value.flatten().tolist() if token != 0]  # 0 is padding
    return "token ids " + " ".join(map(str, tokens[:TOKENS])) + (" …" if len(tokens) > TOKENS else "")


def _pixels(value: Tensor) -> Any:
    """(C, H, W) -> (H, W, 3) from 0 to 1; of other than three channels their mean, in grey."""
    value = value.float()
    if len(value) != 3:
        value = value.mean(0, keepdim=True)
    side = max(value.shape[1:])
    if side > LARGEST:
        size = [max(1, round(length * LARGEST / side)) for length in value.shape[1:]]
        value = F.interpolate(value.unsqueeze(0), size=size, mode="area")[0]
    low, high = float(value.min()), float(value.max())
    value = (value - low) / (high - low) if high > low else value.new_full(value.shape, 0.5)
    return value.expand(3, -1, -1).permute(1, 2, 0).numpy().clip(0, 1)


def _curves(series: Tensor) -> tuple[str, ...]:
    """(D, T) -> polylines; where there are more points than can be seen, the extremes of each stretch."""
    low, high = float(series.min()), float(series.max())
    scale = 36 / (high - low) if high > low else 0.0
    found = []
    for values in series.tolist():
        if len(values) > POINTS:
            width = math.ceil(2 * len(values) / POINTS)
            parts = [values[begin : begin + width] for begin in range(0, len(values), width)]
            values = [extreme for part in parts for extreme in (min(part), max(part))]
        step = 100 / max(len(values) - 1, 1)
        found.append(" ".join(f"{place * step:.2f},{38 - scale * (v - low):.2f}" for place, v in enumerate(values)))
    return tuple(found)
