"""What in the data of a run may be read otherwise than it was meant: said once, before the run, and trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from agm.data import MultimodalData
from agm.data._files import memory

__all__ = ["doubts"]

_MUCH = 0.1  # of the memory of the machine
_MANY = 20  # classes without names, some of which are empty: they may be ages, prices ...
_HEADS = 4  # of the small encoder
_PICTURE = 8  # pixels a side that a picture has at least
_LARGE = 30.0  # standard deviations of features that networks of torch's initial weights take badly


def doubts(data: MultimodalData, batch_size: int) -> list[str]:
    """A sentence each; none for data about which there is no doubt."""
    found = [*_empty_classes(data), *_large_numbers(data)]
    for name, values in data.train.inputs.items():
        found += [*_doubts_of(name, values), *_long(name, values, batch_size)]
    return found


def _long(name: str, values: Tensor, batch_size: int) -> list[str]:
    """Sequences whose attention (B, heads, T, T) fills much of the memory."""
    if values.dim() != 3:
        return []
    size = 4 * _HEADS * min(batch_size, len(values)) * values.shape[1] ** 2
    if size < _MUCH * memory():
        return []
    return [
        f"{name!r} has sequences of {values.shape[1]} steps, whose attention alone takes {size / 2**30:.0f} GiB in a "
        "layer of the small encoder. Shorten or pool them, or use a smaller --batch-size."
    ]


def _empty_classes(data: MultimodalData) -> list[str]:
    if data.train.target.dim() != 1 or data.train.target.is_floating_point():
        return []
    counts = torch.bincount(data.train.target, minlength=data.num_classes)
    empty = [data.class_names[place] for place in (counts == 0).nonzero().flatten().tolist()]
    if not empty:
        return []
    shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
    quantity = (
        ' If the target is a quantity to be predicted, store it as numbers: floats, with `task` = "numbers".'
        if data.num_classes > _MANY and data.class_names == tuple(map(str, range(data.num_classes)))
        else ""
    )
    return [
        f"{len(empty)} of {data.num_classes} classes {'has' if len(empty) == 1 else 'have'} no sample in the training "
        f"split: {shown}. Integer labels are class indices, from 0 on; store labels that are numbered otherwise as "
        f"strings.{quantity}"
    ]


def _large_numbers(data: MultimodalData) -> list[str]:
    if data.task != "numbers":
        return []
    scale = float(data.train.target.double().pow(2).mean().sqrt())
    if scale <= _LARGE:
        return []
    return [
        f"the target has values of about {scale:.3g} (root mean square), on which training may diverge. Store them "
        "with mean 0 and standard deviation 1, or use --error absolute."
    ]


def _are_bytes(values: Tensor) -> bool:
    """Whether the values are whole numbers from 0 to 255 that fill much of this range, as those of pictures do."""
    most = float(values.max()) if values.numel() else 0.0
    return 128 <= most <= 255 and bool((values >= 0).all()) and bool((values == values.round()).all())


def _doubts_of(name: str, values: Tensor) -> list[str]:
    if not values.is_floating_point():  # token ids
        return []
    found = []
    shape = tuple(values.shape[1:])
    if len(shape) == 3 and shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        found.append(
            f"{name!r} is read as {shape[0]} channels of {shape[1]} x {shape[2]}. If its channels are last, store "
            f"{(shape[2], shape[0], shape[1])} a sample."
        )
    if len(shape) == 2 and min(shape) >= _PICTURE and _are_bytes(values):
        found.append(
            f"{name!r} is read as sequences of {shape[0]} steps of {shape[1]} features. If these are grey pictures, "
            f"store {(1, *shape)} a sample."
        )
    values = values.double()
    scale = float(values.pow(2).mean().sqrt()) if values.numel() else 0.0
    if scale > _LARGE:
        found.append(
            f"{name!r} has values of about {scale:.3g} (root mean square), on which training may diverge. Scale them: "
            "--scale standard."
        )
    return found
