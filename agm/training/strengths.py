"""Competition strengths of a network on the splits of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agm.competition import Strength, fused_features, mono_modal_concept, strength_over_batches
from agm.data import Split
from agm.training.single_modality import SingleModality

__all__ = ["Concepts", "concept_method", "concepts_of", "strength_apart", "strength_of"]

BATCH = 256  # samples a pass

Concepts = Mapping[str, tuple[Tensor, Tensor]]  # modality -> its concept (N, p) on the fitting and on the test split

_LATE = ("late", "late-sum")


def concept_method(fusion: str, modality: str) -> str:
    """The method that trains the network of a mono-modal concept: the unimodal network for late fusion, the whole
    network with the other modalities absent for others (Li et al., ICCV 2023)."""
    return f"{'unimodal' if fusion in _LATE else 'alone'}:{modality}"


def concepts_of(networks: Mapping[str, nn.Module], fit: Split, test: Split) -> Concepts:
    """The concepts of networks that were trained on one modality each.

    Args:
        networks: modality -> a network that takes this modality only, as `concept_method` trains it.
        fit, test: the samples, on the networks' device.
    """
    return {name: (_logits(network, name, fit), _logits(network, name, test)) for name, network in networks.items()}


def strength_of(
    network: nn.Module,
    fit: Split,
    test: Split,
    concepts: Concepts,
    *,
    ridge: float | Literal["cv"] = "cv",
    layer: str | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Strength]:
    """Competition strength of each modality, with a bootstrap interval over the test samples.

    Args:
        network: plain (not wrapped in AGM); takes all modalities of the splits as keywords.
        fit: samples that neither the network nor the concepts were trained on, for the regression.
        test: other samples, for the strength.
        concepts: of the same splits (`concepts_of`).
        ridge: penalty of the regression; "cv" chooses it anew for each modality, by cross-validation on `fit`.
        layer: path of the module that reads the fused features, for networks that do not offer `fused_features`.
        resamples, confidence, seed: of the interval.

    Raises:
        ValueError: too few samples, a concept that is constant, values that are not finite, another bad argument.
    """
    return _measured(
        lambda inputs: fused_features(network, inputs, layer=layer),
        fit,
        test,
        concepts,
        ridge=ridge,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def strength_apart(
    networks: Mapping[str, nn.Module],
    fit: Split,
    test: Split,
    concepts: Concepts,
    *,
    ridge: float | Literal["cv"] = "cv",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Strength]:
    """Strength of networks that were trained apart, on one modality each, their fused features side by side.

    There was no competition between them, so what is left is what the measurement cannot avoid: finitely many samples,
    the penalty, and that two trainings of one modality do not end alike. A strength is read against it.

    Args:
        networks: as for `concepts_of`, but trained with other seeds than the concepts.
        fit, test, concepts, ridge, resamples, confidence, seed: as for `strength_of`.
    """

    def features(inputs: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name, network in networks.items():
            own = {name: inputs[name]}
            if isinstance(network, SingleModality):
                parts.append(fused_features(network.network, network.whole(own)))
            else:
                parts.append(fused_features(network, own))
        return torch.cat(parts, dim=1)

    return _measured(features, fit, test, concepts, ridge=ridge, resamples=resamples, confidence=confidence, seed=seed)


def _measured(
    features: Callable[[Mapping[str, Tensor]], Tensor],
    fit: Split,
    test: Split,
    concepts: Concepts,
    **options: Any,
) -> dict[str, Strength]:
    read = [[features(inputs) for inputs in _batches(split)] for split in (fit, test)]  # once for all modalities
    strengths = {}
    for name, known in concepts.items():
        first, second = (list(zip(x, c.split(BATCH), strict=True)) for x, c in zip(read, known, strict=True))
        strengths[name] = strength_over_batches(first, second, **options)
    return strengths


def _logits(network: nn.Module, modality: str, split: Split) -> Tensor:
    return torch.cat(
        [mono_modal_concept(network, {modality: inputs[modality]}, modality) for inputs in _batches(split)]
    )


def _batches(split: Split) -> list[dict[str, Tensor]]:
    return [
        {name: values[begin : begin + BATCH] for name, values in split.inputs.items()}
        for begin in range(0, len(split), BATCH)
    ]
