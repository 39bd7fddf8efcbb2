"""The networks of the step suites, by small names: encoders in the shapes of the field's datasets, under a fusion.

AV-MNIST, UR-Funny and CREMA-D are those of Li et al. (ICCV 2023); inputs are random numbers of their shapes. With more
modalities than a network has, its encoders come again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agm.models import (
    CrossAttentionFusion,
    EarlyFusion,
    GatedFusion,
    LateFusion,
    MLPEncoder,
    ResNet18,
    SmallCNN,
    TransformerEncoder,
)

Pool = Literal["mean"] | None


@dataclass(frozen=True)
class Encoder:
    """One modality: the shape of a sample, and its encoder, which pools or gives tokens."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[Pool], nn.Module]


@dataclass(frozen=True)
class Network:
    """Encoders, and how they are trained.

    Attributes:
        batch, batch_on_cpu: samples of a step; on a CPU fewer where a step would take minutes.
        alpha, max_gap: the authors' settings.
        cases: (fusion, modalities) that are measured when nothing is asked for.
        quick: whether `--quick` takes it.
        most_rivals: modalities up to which the rivals, which make 2**M - 1 passes, run unless asked for.
    """

    name: str
    encoders: tuple[Encoder, ...]
    classes: int
    batch: int
    batch_on_cpu: int
    alpha: float
    cases: tuple[tuple[str, int], ...]
    max_gap: float = 10.0
    quick: bool = False
    most_rivals: int = 3

    def modalities(self, count: int) -> dict[str, Encoder]:
        """Name -> encoder, the first `count` of them; those that come again have a number behind their name."""
        own = len(self.encoders)
        names = [(self.encoders[i % own], i // own) for i in range(count)]
        return {encoder.name + (str(round_ + 1) if round_ else ""): encoder for encoder, round_ in names}

    def build(self, fusion: str, count: int) -> nn.Module:
        pool: Pool = None if fusion == "cross-attention" else "mean"
        encoders = {name: encoder.make(pool) for name, encoder in self.modalities(count).items()}
        return FUSIONS[fusion](encoders, self.classes)

    def inputs(self, count: int, batch: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Modality -> normal numbers (batch, ...), and targets (batch,); the same in every run."""
        generator = torch.Generator().manual_seed(0)
        inputs = {
            name: torch.randn(batch, *encoder.shape, generator=generator).to(device)
            for name, encoder in self.modalities(count).items()
        }
        return inputs, torch.randint(self.classes, (batch,), generator=generator).to(device)


def _early(encoders: Mapping[str, Any], classes: int) -> nn.Module:
    width = sum(encoder.num_features for encoder in encoders.values())
    return EarlyFusion(encoders, classes, hidden=(2 * width, width))  # the proportions of the paper


def _cross_attention(encoders: Mapping[str, Any], classes: int) -> nn.Module:
    return CrossAttentionFusion(encoders, classes, width=128, depth=2)


FUSIONS: Mapping[str, Callable[[Mapping[str, nn.Module], int], nn.Module]] = {
    "late": LateFusion,
    "early": _early,
    "gated": GatedFusion,
    "cross-attention": _cross_attention,
}


def _resnet(name: str, *shape: int) -> Encoder:
    return Encoder(name, shape, lambda pool: ResNet18(shape[-3], pool=pool))


def _small(name: str, width: int, *shape: int) -> Encoder:
    return Encoder(name, shape, lambda pool: SmallCNN(shape[-3], width, pool=pool))


def _transformer(name: str, length: int, features: int, width: int, layers: int) -> Encoder:
    return Encoder(
        name,
        (length, features),
        lambda pool: TransformerEncoder(
            features, width=width, num_layers=layers, num_heads=4, max_length=length, pool=pool
        ),
    )


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "av-mnist",  # two ResNet-18
            (_resnet("audio", 1, 112, 112), _resnet("image", 1, 28, 28)),
            classes=10,
            batch=64,
            batch_on_cpu=64,
            alpha=2.5,
            cases=(("late", 2), ("early", 2), ("late", 3), ("late", 6)),
            most_rivals=2,
        ),
        Network(
            "ur-funny",  # three transformers of 8 layers
            tuple(
                _transformer(name, 20, features, 768, 8)
                for name, features in (("audio", 81), ("visual", 371), ("text", 300))
            ),
            classes=2,
            batch=16,
            batch_on_cpu=16,
            alpha=4.0,
            max_gap=7.0,
            cases=(("late", 3), ("early", 3)),
        ),
        Network(
            "crema-d",  # two ResNet-18, one of them over three frames
            (_resnet("audio", 1, 257, 188), _resnet("visual", 3, 3, 224, 224)),
            classes=6,
            batch=64,
            batch_on_cpu=8,
            alpha=1.5,
            cases=(("late", 2),),
            most_rivals=2,
        ),
        Network(
            "tokens",  # a transformer's and a CNN's tokens, for cross-attention
            (_transformer("audio", 40, 40, 128, 2), _small("image", 128, 3, 32, 32)),
            classes=10,
            batch=64,
            batch_on_cpu=64,
            alpha=1.5,
            cases=(("cross-attention", 2), ("cross-attention", 3)),
        ),
        Network(
            "small",  # the CNNs of the command line, where everything but the encoders weighs more
            (_small("audio", 64, 1, 20, 40), _small("image", 64, 1, 32, 32)),
            classes=10,
            batch=64,
            batch_on_cpu=64,
            alpha=1.5,
            cases=tuple((fusion, count) for fusion in ("late", "early") for count in (2, 3, 6)),
            quick=True,
            most_rivals=6,
        ),
        Network(
            "tiny",  # for the tests
            (_small("audio", 8, 1, 12, 12), _small("image", 8, 1, 8, 8)),
            classes=3,
            batch=8,
            batch_on_cpu=8,
            alpha=1.0,
            cases=(),
        ),
        Network(
            "tiny-alike",  # nothing in it depends on the mode
            tuple(Encoder(name, (6,), lambda pool: MLPEncoder(6, num_features=8)) for name in ("audio", "image")),
            classes=3,
            batch=8,
            batch_on_cpu=8,
            alpha=1.0,
            cases=(),
        ),
    )
}
