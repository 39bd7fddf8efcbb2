"""Pictures of any size as small arrays."""

from __future__ import annotations

import io
import warnings
from types import ModuleType

import numpy as np

__all__ = ["SIDE", "load_pillow", "standardised_pixels", "thumbnail"]

SIDE = 32


def load_pillow() -> ModuleType:
    """Pillow's module Image.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Expected Pillow to be installed for reading pictures, but got none. Install it with: pip install pillow"
        ) from error
    return Image


def thumbnail(content: bytes) -> np.ndarray | None:
    """A picture on white, made square by white borders, as (3, SIDE, SIDE) uint8.

    None if it does not open, or is larger than Pillow takes for harmless (some 90 million pixels).
    """
    image = load_pillow()
    wrong = (OSError, SyntaxError, ValueError, image.DecompressionBombError, image.DecompressionBombWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error", image.DecompressionBombWarning)
        try:
            with image.open(io.BytesIO(content)) as opened:
                picture = opened.convert("RGBA")
        except wrong:
            return None
    side = max(picture.size)
    paper = image.new("RGBA", (side, side), "white")
    paper.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = paper.convert("RGB").resize((SIDE, SIDE), image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(small, dtype=np.uint8).transpose(2, 0, 1))


def standardised_pixels(name: str, pixels: np.ndarray, training: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of a modality stored as pixels, which read back with mean 0 and deviation 1 over the training samples.

    Zeros, which stand for an absent modality, are then a grey picture of average brightness.
    """
    known = pixels[training].astype(np.float64)
    mean, deviation = float(known.mean()), float(known.std())
    return {
        name: pixels,
        f"{name}.scale": np.asarray(1 / deviation),
        f"{name}.offset": np.asarray(-mean / deviation),
    }
