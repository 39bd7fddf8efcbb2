"""Image files to tensors, by pillow: the field's eval and training transforms, and which frames of a clip are taken."""

from __future__ import annotations

import io
import math
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agm.data._files import known_failure, open_ordinary
from agm.data.layouts.extras import needed

__all__ = [
    "IMAGENET",
    "IMAGES",
    "UNIT",
    "Scale",
    "choose_frames",
    "choose_of_ten",
    "decode_image",
    "list_frames",
    "normalised",
    "random_crop",
    "read_image",
]

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # MPO is read as JPEG
Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel
IMAGENET: Scale = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNIT: Scale = ((0.0,), (1.0,))  # 0 to 1
LARGEST = 64 * 2**20  # bytes of an image file
PIXELS = 64 * 10**6


def decode_image(path_or_bytes: Path | bytes, mode: str = "RGB", name: str | None = None) -> object:
    """An image as pillow has it, in `mode` ("RGB" or "L").

    Raises:
        ModuleNotFoundError: pillow is not installed.
        OSError: the file cannot be opened.
        ValueError: it is no image, damaged, or larger than 64 million pixels.
    """
    pillow = needed("PIL.Image")
    name = name or str(path_or_bytes)
    if isinstance(path_or_bytes, bytes):
        content = path_or_bytes
    else:
        with open_ordinary(path_or_bytes, LARGEST) as file:
            content = file.read()
    try:
        with pillow.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            return image.convert(mode)
    except Exception as error:  # decoders fail in many ways on damaged files
        if isinstance(error, MemoryError):
            raise
        reason = known_failure(content) or re.sub(r"<_io\.[^>]*>", "the file", " ".join(str(error).split()))
        raise ValueError(
            f"Expected {name} to be an image that opens, but got: {reason[:200]}. "
            "Download it again, or leave such files out with agm data convert --skip-bad."
        ) from None


def read_image(
    path: Path | bytes,
    size: int = 224,
    *,
    mode: str = "RGB",
    generator: torch.Generator | None = None,
    training: bool = False,
    turn: float | None = None,
    name: str | None = None,
) -> Tensor:
    """An image of `size` x `size` pixels as bytes: resized, or a random part of it, mirrored in half of the cases.

    Args:
        path: the file, or its content.
        size: of both sides.
        mode: "RGB", or "L" for grey.
        generator: of the random part; torch's own by default.
        training: a random part of 8 to 100 % of the area, else the whole image.
        turn: in training the whole image, turned by a random angle of so many degrees at most, in the place of a part.

    Returns:
        (3 or 1, size, size) uint8.

    Source: torchvision's Resize((size, size)), RandomResizedCrop(size) and RandomHorizontalFlip on pillow's images,
    with the same random numbers in the same order.
    """
    pillow = needed("PIL.Image")
    image = decode_image(path, mode, name)
    if training and turn is not None:
        angle = float(torch.empty(1).uniform_(-turn, turn, generator=generator))
        image = image.rotate(angle)  # type: ignore[attr-defined]
    elif training:
        top, left, height, width = random_crop(image.height, image.width, generator)  # type: ignore[attr-defined]
        image = image.crop((left, top, left + width, top + height))  # type: ignore[attr-defined]
    image = image.resize((size, size), pillow.Resampling.BILINEAR)  # type: ignore[attr-defined]
    made = torch.from_numpy(np.array(image))
    made = made[None] if made.ndim == 2 else made.permute(2, 0, 1)
    if training and float(torch.rand(1, generator=generator)) < 0.5:
        made = made.flip(-1)
    return made.contiguous()


def normalised(images: Tensor, scale: Scale = IMAGENET) -> Tensor:
    """Bytes of images (..., C, H, W) to float32, by default with ImageNet's mean and deviation of each channel."""
    mean, deviation = _scale_on(scale, images.device)
    return (images.float() / 255 - mean) / deviation


@cache
def _scale_on(scale: Scale, device: torch.device) -> tuple[Tensor, Tensor]:
    """Copied once: a copy in each batch would wait for the device."""
    mean, deviation = (torch.tensor(part, device=device).reshape(-1, 1, 1) for part in scale)
    return mean, deviation


def random_crop(height: int, width: int, generator: torch.Generator | None = None) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part: 8 to 100 % of the area, sides 3:4 to 4:3.

    Source: torchvision.transforms.RandomResizedCrop.get_params.
    """
    for _ in range(10):
        area = height * width * float(torch.empty(1).uniform_(0.08, 1.0, generator=generator))
        ratio = torch.tensor([3 / 4, 4 / 3]).log()
        aspect = float(torch.empty(1).uniform_(float(ratio[0]), float(ratio[1]), generator=generator).exp())
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            top = int(torch.randint(0, height - high + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - wide + 1, (1,), generator=generator))
            return top, left, high, wide
    high, wide = height, width
    if width / height < 3 / 4:
        high = round(width / (3 / 4))
    elif width / height > 4 / 3:
        wide = round(height * (4 / 3))
    return (height - high) // 2, (width - wide) // 2, high, wide


def list_frames(folder: Path) -> list[Path]:
    """The image files of a clip's folder in the order of their names; none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(IMAGES)]
            return sorted(folder / name for name in names if not name.startswith("."))  # ._ files of macOS
    except (FileNotFoundError, NotADirectoryError):
        return []


@cache
def _seeded(number: int, wanted: int) -> tuple[int, ...]:
    return tuple(sorted(np.random.RandomState(999).choice(number, wanted, replace=False).tolist()))


def choose_of_ten(
    number: int, wanted: int, pick: str, *, training: bool = False, generator: torch.Generator | None = None
) -> list[int]:
    """As `choose_frames`, for clips of ten seconds with a frame each, as MMPareto and BalanceBenchmark choose.

    Of fewer than seven frames the first one, again and again; the tenth is never taken.
    """
    if "middle" in pick and number < 7:
        return [0] * wanted
    places = choose_frames(number, wanted, pick, training=training, generator=generator)
    return [min(place, 8) for place in places]


def choose_frames(
    number: int, wanted: int, pick: str, *, training: bool = False, generator: torch.Generator | None = None
) -> list[int]:
    """Places of the frames that are taken out of `number`.

    Args:
        number: frames that there are, 1 or more.
        wanted: frames to take.
        pick: "seeded": as AGM's loader draws, numpy's generator started with 999 each time, so always the same ones;
            "first": the first ones; "middle" and "lower-middle": one out of each of `wanted` equal parts, in training
            any, else its middle, of two the upper or the lower one.
        training: for those.
        generator: for those; torch's own by default.

    Returns:
        `wanted` places in rising order; with fewer frames some stand twice.

    Source: "middle" is BalanceBenchmark's CREMA-D, "lower-middle" MMPareto's and its Kinetics-Sounds, VGGSound and
    UCF-101: frames i s + max(s // 2, 1), counted from 1, for parts of s frames.
    """
    if pick == "seeded" and wanted <= number:
        return list(_seeded(number, wanted))
    if pick in ("first", "seeded"):
        return [min(place, number - 1) for place in range(wanted)]
    size = number // wanted
    if not size:
        return [min(place, number - 1) for place in range(wanted)]
    places = []
    for part in range(wanted):
        inside = size // 2 if pick == "middle" else max(size // 2, 1) - 1
        if training:
            inside = int(torch.randint(0, size, (1,), generator=generator))
        places.append(part * size + inside)
    return places
