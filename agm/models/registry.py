"""Fusions by name, and a network for given sample shapes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from agm.models._checks import check_count
from agm.models.averformer import GuidedAttentionFusion
from agm.models.cnn import SmallCNN
from agm.models.cross_attention import CrossAttentionFusion
from agm.models.early import EarlyFusion
from agm.models.factorised import FactorisedNetwork
from agm.models.film import FiLMFusion
from agm.models.gated import GatedFusion
from agm.models.late import LateFusion, LateSumFusion
from agm.models.mlp import MLPEncoder
from agm.models.transformer import TransformerEncoder

__all__ = ["aliases", "build", "fusions"]

fusions: dict[str, type[FactorisedNetwork]] = {
    "late": LateFusion,
    "late-sum": LateSumFusion,
    "early": EarlyFusion,
    "film": FiLMFusion,
    "gated": GatedFusion,
    "cross-attention": CrossAttentionFusion,
    "guided-attention": GuidedAttentionFusion,
}

aliases = {"attention": "cross-attention", "averformer": "guided-attention"}  # other names of fusions


def build(fusion: str, shapes: Mapping[str, Sequence[int]], num_classes: int, width: int = 64) -> FactorisedNetwork:
    """A small network for samples of the given shapes.

    The encoder goes by the rank of a modality's sample: (D,) `MLPEncoder`, (T, D) `TransformerEncoder` for
    sequences of up to T steps, (C, H, W) `SmallCNN`, (T, C, H, W) `SmallCNN` over frames. For cross-attention
    and guided attention sequences and images give tokens, vectors one token.

    Args:
        fusion: a key of `fusions`, or of `aliases`.
        shapes: modality name -> shape of one sample, without the batch.
        num_classes: C.
        width: of every encoder's feature. "early" gets hidden widths of twice and once the concatenation, the
            proportions of the paper; "cross-attention" and "guided-attention" work at this width too.

    Raises:
        ValueError: an unknown fusion, a shape of another rank or with a side below 1, `width` < 4; and as
            `FactorisedNetwork`.
    """
    fusion = aliases.get(fusion, fusion)
    if fusion not in fusions:
        raise ValueError(f"Expected argument `fusion` to be one of {', '.join(fusions)}, but got {fusion!r}.")
    check_count("width", width, least=4)
    tokens = issubclass(fusions[fusion], CrossAttentionFusion)
    encoders = {name: _encoder(name, tuple(shape), width, tokens) for name, shape in shapes.items()}
    options: dict[str, Any] = {}
    if fusion == "early":
        options["hidden"] = (2 * width * len(encoders), width * len(encoders))
    elif tokens:
        options.update(width=width, num_heads=_heads(width))
    return fusions[fusion](encoders, num_classes, **options)


def _encoder(name: str, shape: tuple[int, ...], width: int, tokens: bool) -> nn.Module:
    if not 1 <= len(shape) <= 4 or any(side < 1 for side in shape):
        raise ValueError(
            f"Expected the sample shape of modality {name!r} to be (D,), (T, D), (C, H, W) or (T, C, H, W), "
            f"but got {shape}. Of one number a sample make (N, 1); or build the encoders yourself and pass them to a "
            "fusion of agm.models."
        )
    if len(shape) == 1:
        return MLPEncoder(shape[0], num_features=width)
    pool: Literal["mean"] | None = None if tokens else "mean"
    if len(shape) == 2:
        length, features = shape
        return TransformerEncoder(features, width=width, num_heads=_heads(width), max_length=length, pool=pool)
    return SmallCNN(shape[-3], width, pool=pool)


def _heads(width: int) -> int:
    """The most heads up to 4 that divide the width."""
    return next(heads for heads in (4, 3, 2, 1) if width % heads == 0)
