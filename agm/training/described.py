"""What a run is about to train on, in words: so that data that were misread show before they cost time."""

from __future__ import annotations

from torch import Tensor, nn

from agm.data import MultimodalData
from agm.training.config import Config

__all__ = ["described"]

_CLASSES = 6  # that are named


def described(config: Config, data: MultimodalData, network: nn.Module) -> list[str]:
    """Lines about the data and the network: splits, what there is to predict, and each modality with its encoder.

    >>> import agm
    >>> from agm import models
    >>> from agm.training import Config
    >>> data = agm.data.load("yeast")
    >>> network = models.build("late", {"expression": (79,), "phylogeny": (24,)}, 14)
    >>> print(*described(Config(dataset="yeast"), data, network), sep="\\n")
    yeast: 1425 samples to train on, 385 for validation, 607 to test on
    to predict: any of 14 labels (class1, class2, class3, class4, class5, class6, ...)
    expression: 79 features; MLPEncoder
    phylogeny: 24 features; MLPEncoder
    late fusion, 16,284 parameters
    """
    validation = "" if data.validation is None else f", {len(data.validation)} for validation"
    lines = [f"{data.name}: {len(data.train)} samples to train on{validation}, {len(data.test)} to test on"]
    names = ", ".join(data.class_names[:_CLASSES]) + (", ..." if data.num_classes > _CLASSES else "")
    kind = {"classes": "one of {} classes", "labels": "any of {} labels", "numbers": "numbers ({} a sample)"}[data.task]
    lines.append(f"to predict: {kind.format(data.num_classes)} ({names})")
    encoders = getattr(network, "encoders", {})
    for place, (name, values) in enumerate(data.train.inputs.items()):
        encoder = f"; {type(encoders[name]).__name__}" if name in encoders else ""
        lacking = 0.0
        if data.train.present is not None:
            lacking = 1 - float(data.train.present[:, place].double().mean())
        missing = f", lacking in {100 * lacking:.0f} % of the training samples" if lacking else ""
        lines.append(f"{name}: {_kind(values)}{missing}{encoder}")
    count = sum(parameter.numel() for parameter in network.parameters())
    return [*lines, f"{config.fusion} fusion, {count:,} parameters"]


def _kind(values: Tensor) -> str:
    shape = tuple(values.shape[1:])
    if not values.is_floating_point():
        kind = "bytes of text in UTF-8" if values.element_size() == 1 else "token ids"
        return f"up to {shape[0]} {kind}" if shape else kind
    if len(shape) == 1:
        return f"{shape[0]} feature{'s' if shape[0] > 1 else ''}"
    if len(shape) == 2:
        return f"sequences of {shape[0]} steps of {shape[1]} features"
    if len(shape) == 3:
        return f"{shape[0]} channel{'s' if shape[0] > 1 else ''} of {shape[1]} x {shape[2]}"
    if len(shape) == 4:
        return f"{shape[0]} frames, {shape[1]} channels of {shape[2]} x {shape[3]}"
    return f"samples of shape {shape}"
