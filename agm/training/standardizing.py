"""Features scaled by the training split, for data that are not scaled yet."""

from __future__ import annotations

import torch
from torch import Tensor

from agm.data import MultimodalData, Split

__all__ = ["standardized"]


def standardized(data: MultimodalData) -> MultimodalData:
    """The data with mean 0 and standard deviation 1 in the training split, of each feature or channel.

    Of (N, D) each of D has its own, of (N, T, D) too, of (N, C, H, W) and (N, T, C, H, W) each of C. What does not vary
    becomes 0, and so zeros, which stand for an absent modality, are an average input. Text and token ids stay as they
    are, and samples that lack a modality have no part in its mean.

    >>> import agm
    >>> scaled = standardized(agm.data.load("yeast"))
    >>> [round(float(x.std()), 2) for x in scaled.train.inputs.values()]
    [1.0, 1.0]
    """
    scales = {
        name: _statistics(values, None if data.train.present is None else data.train.present[:, place])
        for place, (name, values) in enumerate(data.train.inputs.items())
        if values.is_floating_point()
    }

    def scaled(which: str, split: Split) -> Split:
        inputs = {}
        for name, values in split.inputs.items():
            if name in scales:
                mean, deviation = scales[name]
                values = ((values.double() - mean) / deviation).float()
                if not bool(values.isfinite().all()):
                    raise ValueError(
                        f"Expected {name!r} of the {which} split to be like that of the training split, by whose mean "
                        "and deviation it is scaled, but got values that overflow. Correct them."
                    )
            inputs[name] = values
        return Split(inputs, split.target, split.present)

    return data.map_splits(scaled)


def _statistics(values: Tensor, having: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float64, in a shape that a sample can be combined with."""
    values = (values if having is None else values[having]).double()
    if not len(values):  # of nothing but zeros
        return torch.zeros_like(values.sum(0)), torch.ones_like(values.sum(0))
    own = values.dim() - 3 if values.dim() > 3 else values.dim() - 1  # the dimension of channels or of features
    others = tuple(dim for dim in range(values.dim()) if dim != own)
    mean = values.mean(others, keepdim=True)[0]
    deviation = values.var(others, correction=0, keepdim=True).sqrt()[0]
    return mean, torch.where(deviation > 0, deviation, 1.0)
