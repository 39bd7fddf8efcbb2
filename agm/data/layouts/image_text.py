"""What the sets of images with a text have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, number
from agm.data.layouts.layout import Layout, Sample
from agm.data.layouts.lists import safe_name
from agm.data.layouts.pictures import IMAGENET, Scale, read_image
from agm.data.layouts.text import encode_text, text_options

__all__ = ["ImageText", "image_text_options"]


def image_text_options(length: int) -> dict[str, Choice]:
    return {"size": number(224, 8, 1024, "sides of an image in pixels"), **text_options(length)}


class ImageText(Layout):
    """An image file and a text a sample.

    `read` gives "image" (3, 224, 224) float32 and "text" (40,) int64 token ids, 0 beyond the end of the text.
    """

    modalities = ("image", "text")
    pictures: ClassVar[Mapping[str, Scale]] = {"image": IMAGENET}
    turn: ClassVar[float | None] = None

    def add(self, name: str, split: str, label: int, image: Path, text: str, file: Path, group: str = "") -> None:
        """Add a sample whose image is there, else skip it."""
        if not safe_name(name):
            self.skip(name, "a name that leads out of the folder", file, bad="Do not use this list.")
        elif not image.is_file():
            self.skip(name, "no image", image)
        else:
            self.samples.append(Sample(name, split, label, {"image": image}, group, extra=text))

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        options = self.chosen
        image = read_image(
            sample.files["image"], options["size"], training=training, generator=generator, turn=self.turn
        )
        return {"image": image, "text": encode_text(sample.extra, options["length"], options["tokenizer"])}
