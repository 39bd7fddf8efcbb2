"""Fusions by name, and a network for given sample shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

from agm.models._checks import check_count
from agm.models.averformer import GuidedAttentionFusion
from agm.models.cross_attention import CrossAttentionFusion
from agm.models.early import EarlyFusion
from agm.models.encoder_sets import heads_of, make_encoder
from agm.models.factorised import FactorisedNetwork
from agm.models.film import FiLMFusion
from agm.models.gated import GatedFusion
from agm.models.late import LateFusion, LateSumFusion

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

PUBLISHED_HIDDEN = (2048, 1024)  # widths of early fusion by AGM's authors, for two modalities and for three

aliases = {"attention": "cross-attention", "averformer": "guided-attention"}  # other names of fusions


def build(
    fusion: str,
    shapes: Mapping[str, Sequence[int]],
    num_classes: int,
    width: int = 64,
    vocabularies: Mapping[str, int] | None = None,
    encoders: str = "small",
) -> FactorisedNetwork:
    """A network for samples of the given shapes, a small one where nothing else is asked for.

    A "small" encoder goes by the rank of a modality's sample: (D,) `MLPEncoder`, (T, D) `TransformerEncoder` for
    sequences of up to T steps, (C, H, W) `SmallCNN`, (T, C, H, W) `SmallCNN` over frames; text and token ids (T,), in
    `vocabularies`, `TextEncoder`. For cross-attention and guided attention
    sequences, images and text give tokens, vectors one token.

    Args:
        fusion: a key of `fusions`, or of `aliases`.
        shapes: modality name -> shape of one sample, without the batch.
        num_classes: C.
        width: of every encoder's feature, where the encoder leaves a choice. "early" gets hidden widths of twice and
            once the concatenation, the proportions of the paper, and with other encoders than small ones the paper's
            2048 and 1024; "cross-attention" and "guided-attention" work at this width too.
        vocabularies: modality -> how many different numbers its samples are made of, 0 being padding: 256 for UTF-8.
        encoders: a key of `agm.models.encoders`: "small"; "resnet18" of images and frames; "lenet" of digits and their
            spectrograms; "transformer-8" and "transformer-2", `FirstTokenTransformer` of so many layers for sequences.

    Raises:
        ValueError: an unknown fusion, a shape that the encoders do not take, `width` < 4, a vocabulary of a
            modality that is not there; and as `FactorisedNetwork`.
    """
    fusion = aliases.get(fusion, fusion)
    if fusion not in fusions:
        raise ValueError(f"Expected argument `fusion` to be one of {', '.join(fusions)}, but got {fusion!r}.")
    check_count("width", width, least=4)
    tokens = issubclass(fusions[fusion], CrossAttentionFusion)
    words = vocabularies or {}
    if unknown := sorted(words.keys() - shapes.keys()):
        raise ValueError(
            f"Expected argument `vocabularies` to name modalities among {', '.join(shapes)}, but got "
            f"{', '.join(unknown)}."
        )
    made = {
        name: make_encoder(encoders, name, tuple(shape), width, tokens=tokens, vocabulary=words.get(name))
        for name, shape in shapes.items()
    }
    options: dict[str, Any] = {}
    if fusion == "early":
        options["hidden"] = (2 * width * len(made), width * len(made)) if encoders == "small" else PUBLISHED_HIDDEN
    elif tokens:
        options.update(width=width, num_heads=heads_of(width))
    return fusions[fusion](made, num_classes, **options)
