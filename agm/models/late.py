"""Late fusion: logits that are a sum of one term a modality."""

from collections.abc import Mapping
from functools import reduce
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.models.factorised import FactorisedNetwork, concatenate

__all__ = ["LateFusion", "LateSumFusion"]


class LateFusion(FactorisedNetwork):
    """Late fusion by a linear layer on the concatenated features, or by summed unimodal logits.

    Both are additive, `z = b + sum_m W_m h_m`; they differ in their parameters and initialisation only.
    "concat" is the late fusion of AGM (Li et al., ICCV 2023), "sum" the SumFusion of OGM-GE (Peng et al.,
    CVPR 2022).

    Args:
        encoders: modality name -> module giving features (B, D_m).
        num_classes: C.
        combine: "concat": one `nn.Linear(sum D_m, C)`, `classifier`; "sum": one `nn.Linear(D_m, C)` a
            modality, `heads[name]`.
        num_features: modality name -> D_m, for encoders without `num_features`.

    Raises:
        ValueError: `combine` is neither; and as `FactorisedNetwork`.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        combine: Literal["concat", "sum"] = "concat",
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(encoders, num_classes, num_features=num_features)
        self.combine = combine
        if combine == "concat":
            self.classifier = nn.Linear(sum(self.widths.values()), num_classes)
        elif combine == "sum":
            self.heads = nn.ModuleDict({name: nn.Linear(width, num_classes) for name, width in self.widths.items()})
        else:
            raise ValueError(f"Expected argument `combine` to be 'concat' or 'sum', but got {combine!r}.")

    def split_head(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Modality name -> (W_m (C, D_m), b_m (C,)), differentiable, with `fuse = sum_m (W_m h_m + b_m)`.

        A modality's bias is its own head's ("sum"), or an equal share b / M of the common one ("concat").
        """
        if self.combine == "sum":
            heads = {name: cast(nn.Linear, head) for name, head in self.heads.items()}
            return {name: (head.weight, head.bias) for name, head in heads.items()}
        classifier = cast(nn.Linear, self.classifier)
        weights = classifier.weight.split(list(self.widths.values()), dim=1)
        bias = classifier.bias / len(self.widths)
        return {name: (weight, bias) for name, weight in zip(self.widths, weights, strict=True)}

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality name -> its term of the logits (B, C), as `split_head` has it; they sum to `fuse(features)`."""
        vectors = dict(zip(self.encoders, self.vectors(features), strict=True))
        if self.combine == "sum":
            return {name: head(vectors[name]) for name, head in self.heads.items()}
        return {name: F.linear(vectors[name], weight, bias) for name, (weight, bias) in self.split_head().items()}

    def head_gradients(self) -> dict[str, Tensor | None]:
        """Modality name -> gradient of its W_m (C, D_m), which may be written in place; None where there is none.

        Under "concat" it is a view of columns of the gradient of `classifier.weight`.
        """
        if self.combine == "sum":
            return {name: cast(nn.Linear, head).weight.grad for name, head in self.heads.items()}
        gradient = cast(nn.Linear, self.classifier).weight.grad
        if gradient is None:
            return dict.fromkeys(self.widths)
        return dict(zip(self.widths, gradient.split(list(self.widths.values()), dim=1), strict=True))

    def fused_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """The concatenated features (B, sum D_m)."""
        return concatenate(self.vectors(features))

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) from features (B, D_m)."""
        if self.combine == "sum":
            return reduce(torch.add, self.unimodal_logits(features).values())
        return super().fuse(features)


class LateSumFusion(LateFusion):
    """`LateFusion(combine="sum")` under a name of its own."""

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(encoders, num_classes, combine="sum", num_features=num_features)
