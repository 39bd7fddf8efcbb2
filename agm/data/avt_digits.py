"""AVT-Digits: AV-Digits and, as a third modality, the digit written out in words.

The samples, splits, sounds and images are those of AV-Digits. "text" is (N, 12, 26) float32: the digit's name in one of
forty languages with 15 % of its letters mistyped, letter by letter as one-hot vectors, standardised; the spellings of
the test set do not occur in training. `build_avt_digits` makes it with other shares of mistakes.
"""

from __future__ import annotations

from importlib import resources

from agm.data.arrays import load_arrays
from agm.data.av_digits import load_av_digits
from agm.data.multimodal import MultimodalData, Split

__all__ = ["load_avt_digits"]


def load_avt_digits() -> MultimodalData:
    """The dataset that comes with the package, its sounds and images read from AV-Digits."""
    sounds_and_images = load_av_digits()
    with resources.as_file(resources.files("agm.data").joinpath("written_digits.npz")) as path:
        written = load_arrays(path)
    splits = {}
    for name, split in sounds_and_images.splits.items():
        words = written.splits[name]
        if not words.target.equal(split.target):
            raise RuntimeError(
                f"Expected written_digits.npz to have the labels of av_digits.npz, but got others in {name}. "
                "The installed package is damaged: install it again."
            )
        splits[name] = Split({**split.inputs, **words.inputs}, split.target)
    return MultimodalData("avt-digits", splits["train"], splits["test"], None, sounds_and_images.class_names)
