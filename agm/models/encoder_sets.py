"""Sets of encoders by name: what `build` makes of a sample's shape."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from agm.models.cnn import SmallCNN
from agm.models.first_token import FirstTokenTransformer
from agm.models.lenet import LeNet
from agm.models.mlp import MLPEncoder
from agm.models.resnet import ResNet18
from agm.models.text import TextEncoder
from agm.models.transformer import TransformerEncoder

__all__ = ["encoders", "heads_of", "make_encoder"]

Shape = tuple[int, ...]


def _small(shape: Shape, width: int, tokens: bool) -> nn.Module | None:
    pool: Literal["mean"] | None = None if tokens else "mean"
    if len(shape) == 1:
        return MLPEncoder(shape[0], num_features=width)
    if len(shape) == 2:
        length, features = shape
        return TransformerEncoder(features, width=width, num_heads=heads_of(width), max_length=length, pool=pool)
    return SmallCNN(shape[-3], width, pool=pool)


def _resnet18(shape: Shape, width: int, tokens: bool) -> nn.Module | None:
    return ResNet18(shape[-3], pool=None if tokens else "mean") if len(shape) > 2 else None


def _lenet(shape: Shape, width: int, tokens: bool) -> nn.Module | None:
    return LeNet(shape[-3], min(shape[-2:])) if len(shape) > 2 and min(shape[-2:]) > 1 and not tokens else None


def _first_token(layers: int) -> Callable[[Shape, int, bool], nn.Module | None]:
    def made(shape: Shape, width: int, tokens: bool) -> nn.Module | None:
        if len(shape) != 2 or tokens:
            return None
        return FirstTokenTransformer(shape[1], width=width, num_heads=heads_of(width), num_layers=layers)

    return made


# name -> (sample shape, width, whether tokens are wanted) -> encoder, or None where the set has none for it
encoders: dict[str, Callable[[Shape, int, bool], nn.Module | None]] = {
    "small": _small,
    "resnet18": _resnet18,
    "lenet": _lenet,
    "transformer-8": _first_token(8),
    "transformer-2": _first_token(2),
}

_TAKES = {
    "small": "(D,), (T, D), (C, H, W) or (T, C, H, W)",
    "resnet18": "(C, H, W) or (T, C, H, W)",
    "lenet": "(C, H, W) or (T, C, H, W) with sides of 2 or more, for another fusion than cross-attention",
    "transformer-8": "(T, D), for another fusion than cross-attention",
    "transformer-2": "(T, D), for another fusion than cross-attention",
}


def make_encoder(
    kind: str, name: str, shape: Shape, width: int, *, tokens: bool = False, vocabulary: int | None = None
) -> nn.Module:
    """The encoder of a modality.

    Args:
        kind: a key of `encoders`.
        name: of the modality, for messages.
        shape: of one sample.
        width: of the feature, where the encoder leaves a choice.
        tokens: a feature for each place rather than one a sample.
        vocabulary: of text or token ids: how many numbers there are. All sets have `TextEncoder` for them.

    Raises:
        ValueError: an unknown kind, or a shape for which it has no encoder.
    """
    if kind not in encoders:
        raise ValueError(f"Expected argument `encoders` to be one of {', '.join(encoders)}, but got {kind!r}.")
    if vocabulary is not None:
        if len(shape) != 1:
            raise ValueError(
                f"Expected the sample shape of modality {name!r}, of text or token ids, to be (T,), but got {shape}."
            )
        return TextEncoder(vocabulary, num_features=width, pool=None if tokens else "max")
    possible = 1 <= len(shape) <= 4 and all(side >= 1 for side in shape)
    encoder = encoders[kind](shape, width, tokens) if possible else None
    if encoder is None:
        raise ValueError(
            f"Expected the sample shape of modality {name!r} to be {_TAKES[kind]}, but got {shape}. Use other "
            "encoders, or build them yourself and pass them to a fusion of agm.models."
        )
    return encoder


def heads_of(width: int) -> int:
    """The most heads up to 4 that divide the width."""
    return next(heads for heads in (4, 3, 2, 1) if width % heads == 0)
