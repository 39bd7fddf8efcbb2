"""The protocol of a factorised network: named encoders, then a fusion of their features."""

import keyword
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agm.models._checks import check_count
from agm.modulation import order

__all__ = ["FactorisedNetwork"]

# `self` and `target` would collide with the parameters of the forward that receives modalities by keyword.
RESERVED = frozenset({"self", "target"})


class FactorisedNetwork(nn.Module, ABC):
    """Base of the fusion networks: `forward(**inputs) = fuse({name: encoders[name](inputs[name])})`.

    A subclass sets `classifier` and writes `fused_features`; `fuse` is its own to change. `fuse` must treat rows
    (samples) alike, batch norm and dropout apart: it is called on batches whose rows combine the features of
    present and absent modalities. One encoder is allowed: it makes the unimodal network of the same fusion.

    The state dict has the names of the modalities, as `modalities`: weights of a fusion that reads them in another
    order are refused.

    Attributes:
        encoders: `nn.ModuleDict`, modality name -> encoder; its order is the order of the modalities.
        widths: modality name -> width of the encoder's feature (its last dimension).
        num_classes: C.
        classifier: the last layer, fused features -> logits.

    Args:
        encoders: modality name -> module. Names are Python identifiers, and neither `self` nor `target`.
        num_classes: C >= 1.
        num_features: modality name -> feature width, for encoders without an integer attribute
            `num_features`; where both exist, this argument wins.

    Raises:
        ValueError: no encoders, an unusable modality name, or an unknown feature width.
        TypeError: an encoder is not an `nn.Module`.
    """

    classifier: nn.Module

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        _check_encoders(encoders)
        self.encoders = nn.ModuleDict(encoders)
        self.num_classes = num_classes
        self.widths = _widths(encoders, num_features or {})

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names of the modalities, in their order."""
        return tuple(self.encoders)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + order.KEY] = order.order_of(self.modalities)  # in which a fusion reads the features

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        *_, error_msgs = args
        saved = state_dict.pop(prefix + order.KEY, None)  # none in checkpoints of versions before
        if saved is not None and not saved.is_meta and (names := order.names_in(saved)) != self.modalities:
            error_msgs.append(
                f"Expected weights of a fusion of {self.modalities}, in this order, but {prefix + order.KEY} holds "
                f"{names}. Build the network with its encoders in that order."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    @abstractmethod
    def fused_features(self, features: Mapping[str, Any]) -> Tensor:
        """What the last linear layer reads: (B, F), from the features of all modalities."""

    def fuse(self, features: Mapping[str, Any]) -> Tensor:
        """Logits (B, C) from the features of all modalities, each with the batch first."""
        logits: Tensor = self.classifier(self.fused_features(features))
        return logits

    def forward(self, /, **inputs: Any) -> Tensor:
        """Logits (B, C) from one input a modality, passed by keyword.

        Raises:
            TypeError: a modality is missing, or there is one that the network does not have.
        """
        if problem := _difference(self.encoders, inputs):
            raise TypeError(f"Expected the modalities {', '.join(self.encoders)} as keyword arguments, but {problem}.")
        return self.fuse({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})

    def ordered(self, features: Mapping[str, Any]) -> list[Any]:
        """The features in the order of the modalities, whatever the order of the mapping.

        Raises:
            ValueError: a modality is missing, or there is one that the network does not have.
        """
        if problem := _difference(self.encoders, features):
            raise ValueError(f"Expected argument `features` to hold {', '.join(self.encoders)}, but {problem}.")
        return [features[name] for name in self.encoders]

    def vectors(self, features: Mapping[str, Any]) -> list[Tensor]:
        """`ordered`, for fusions of one vector a sample: each feature is checked to be (B, width).

        Raises:
            ValueError: as `ordered`, or a feature has another shape.
        """
        vectors = self.ordered(features)
        for (name, width), vector in zip(self.widths.items(), vectors, strict=True):
            if not isinstance(vector, Tensor) or vector.ndim != 2 or vector.shape[1] != width:
                got = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
                raise ValueError(
                    f"Expected the feature of modality {name!r} to be (B, {width}), but got {got}. "
                    "Pool sequences and maps in the encoder, or give the width by `num_features`."
                )
        return vectors


def _check_encoders(encoders: Mapping[str, nn.Module]) -> None:
    if not isinstance(encoders, Mapping) or not encoders:
        raise ValueError(
            "Expected argument `encoders` to be a mapping from at least one modality name to its encoder, "
            f"but got {encoders!r}."
        )
    taken = nn.ModuleDict()
    for name, encoder in encoders.items():
        usable = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        # nn.ModuleDict has no room for names that are attributes of its own, such as "keys".
        if not usable or name in RESERVED or hasattr(taken, name):
            raise ValueError(
                f"Expected each modality name to be an identifier fit for a keyword argument, "
                f"but got {name!r}. Rename it: take letters, digits and underscores, without a digit in front; 'self', "
                "'target' and attributes of nn.ModuleDict are taken."
            )
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"Expected the encoder of modality {name!r} to be an nn.Module, but got {type(encoder).__name__}."
            )


def _widths(encoders: Mapping[str, nn.Module], num_features: Mapping[str, int]) -> dict[str, int]:
    if unknown := [name for name in num_features if name not in encoders]:
        raise ValueError(
            f"Expected argument `num_features` to name modalities among {', '.join(encoders)}, "
            f"but got {', '.join(map(repr, unknown))}."
        )
    widths = {}
    for name, encoder in encoders.items():
        width = num_features.get(name, getattr(encoder, "num_features", None))
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(
                f"Expected the feature width of modality {name!r} to be a positive integer, "
                f"but got {width!r}. Give the encoder an integer attribute `num_features`, "
                f"or pass num_features={{{name!r}: ...}}."
            )
        widths[name] = width
    return widths


def _difference(expected: Iterable[str], got: Iterable[str]) -> str:
    """'audio missing; text unknown', or an empty string when both hold the same names."""
    expected, got = list(expected), list(got)
    missing = [name for name in expected if name not in got]
    unknown = [name for name in got if name not in expected]
    groups = ((missing, "missing"), (unknown, "unknown"))
    return "; ".join(f"{', '.join(names)} {problem}" for names, problem in groups if names)


def concatenate(vectors: list[Tensor]) -> Tensor:
    """Vectors (B, D_m) side by side; a single one is not copied."""
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)
